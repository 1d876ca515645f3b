"""Further linear heads of a reward model: those of the objectives that it combines, and an ensemble.

The reward of a combined model is the sum of its objectives' standardised rewards, by weights. The ensemble tells how
far a reward is determined by the training pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .fields_sparserm import OBJECTIVE_KINDS, short
from .head_sparserm import Affine, ObjectiveHeads


@dataclass
class RewardOutput(SequenceClassifierOutput):
    """Output of a reward model.

    Attributes:
        loss: () mean squared error to the labels, if labels were given.
        logits: (B, 1) rewards.
        rewards: (B, objectives) rewards by objective, in the order of `config.objectives`; None unless the reward
            model is a combined one.
        standard_deviation: (B,) standard deviations of the rewards over an ensemble of heads; None without one.
    """

    rewards: torch.Tensor | None = None
    standard_deviation: torch.Tensor | None = None


class HasFurtherHeads:
    """The part of a reward model that knows its objectives and its ensemble.

    The reward is `sum of weight * (reward of the objective - reward_mean) / reward_std`. Every objective is linear in
    the same features, so the reward is too: `score` holds its weights.
    """

    config: Any
    score: Any
    empty_features: torch.Tensor

    @property
    def objectives(self) -> ObjectiveHeads | None:
        """The heads of the objectives, which have no gradients; None unless the reward model is a combined one."""
        return self.score.objectives

    def objective_rewards(self, features: torch.Tensor) -> torch.Tensor | None:
        """Turn (B, K) features into (B, objectives) rewards, in float32 under any autocast.

        Without objectives it returns None.
        """
        return _apply(self.score.objectives, features)

    def reward_deviation(self, features: torch.Tensor) -> torch.Tensor | None:
        """Compute the (B,) standard deviations of the rewards of (B, K) features over the ensemble.

        Without an ensemble it returns None.
        """
        rewards = _apply(self.score.ensemble, features)
        return None if rewards is None else rewards.std(-1)

    def objective_shares(self) -> torch.Tensor:
        """Return the (objectives,) factors of the objectives' rewards in the reward: `weight / reward_std`."""
        assert self.objectives is not None
        return self.objectives.weight.new_tensor([of["weight"] / of["reward_std"] for of in self.config.objectives])

    @torch.no_grad()
    def weigh(self, weights: Mapping[str, float]) -> None:
        """Change the weights of objectives in the reward, in place; other objectives keep their weights.

        `reward_std` and `reward_temperature` are scaled with the weights' norm. An empty response gets the lowest
        reward: for an objective with a negative weight, its reward is mirrored at the mean.

        Args:
            weights: Weight by name of the objective. An objective with the weight 0 does not count.

        Raises:
            ValueError: The model is not a combined one, has no such objective, a weight is not a number, or all
                weights are zero.
        """
        config, names = self.config, self.config.objective_names
        if self.objectives is None:
            raise ValueError("This reward model has one objective, so there is nothing to weigh: combine several.")
        for name, weight in weights.items():
            if name not in names:
                raise ValueError(f"{short(name)} is not one of the objectives, which are {', '.join(names)}.")
            if not OBJECTIVE_KINDS["weight"].holds(weight):
                raise ValueError(f"{name} has the weight {short(weight)}, but it must be a finite number.")
        before = torch.tensor([of["weight"] for of in config.objectives])
        after = torch.tensor([weights.get(of["name"], of["weight"]) for of in config.objectives])
        if not after.any():
            raise ValueError("All objectives have the weight 0: give one of them another weight.")
        config.objectives = [of | {"weight": weights.get(of["name"], of["weight"])} for of in config.objectives]
        scale = float(after.norm() / before.norm())
        config.reward_std, config.reward_temperature = config.reward_std * scale, config.reward_temperature * scale
        means = self.objectives.bias.new_tensor([of["reward_mean"] for of in config.objectives])
        shares = self.objective_shares()
        self.score.weight.copy_(shares[None] @ self.objectives.weight)
        self.score.bias.copy_(shares[None] @ (self.objectives.bias - means))
        above = self.objectives(self.empty_features.to(means)) - means  # (objectives,)
        wanted = torch.where(shares == 0, above, -above.abs() * shares.sign())
        self.empty_features += (torch.linalg.pinv(self.objectives.weight) @ (wanted - above)).to(self.empty_features)


def _apply(heads: Affine | None, features: torch.Tensor) -> torch.Tensor | None:
    """Apply further heads, without gradients for their weights, where they are."""
    if heads is None:
        return None
    with torch.autocast(features.device.type, enabled=False):
        return heads(features.to(heads.weight)).float().to(features.device)
