"""Further linear heads of a reward model: one for each objective of a combined model, and an ensemble.

The reward of a combined model is the weighted sum of its objectives' standardised rewards. With a gate, the weights
depend on the prompt. The standard deviation over the ensemble shows how uncertain a reward is, given the training
pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .fields_sparserm import OBJECTIVE_KINDS, short
from .head_sparserm import Affine, ObjectiveHeads
from .pooling_sparserm import pool_representations, pooled_tokens
from .response_sparserm import find_prompts


@dataclass
class RewardOutput(SequenceClassifierOutput):
    """Output of a reward model.

    Attributes:
        loss: () mean squared error to the labels, if labels were given.
        logits: (B, 1) rewards.
        rewards: (B, objectives) rewards by objective, in the order of `config.objectives`; None unless the reward
            model is a combined one.
        standard_deviation: (B,) standard deviations of the rewards over an ensemble of heads; None without one.
        shares: (B, objectives) factors by which the gate changes the objectives' weights for these prompts; None
            without a gate.
    """

    rewards: torch.Tensor | None = None
    standard_deviation: torch.Tensor | None = None
    shares: torch.Tensor | None = None


class HeadInput(NamedTuple):
    """Input of the head for B texts.

    Attributes:
        features: (B, K) features of the responses.
        shares: (B, objectives) shares of the objectives for these prompts, see `HasFurtherHeads.shares_of`; None
            without a gate.
    """

    features: torch.Tensor
    shares: torch.Tensor | None


class HasFurtherHeads:
    """The part of a reward model that computes rewards, and knows its objectives, their gate and its ensemble.

    The reward of a combined model is `sum of share * weight * (reward of the objective - reward_mean) / reward_std`.
    Every objective is linear in the same features, so for a given prompt the reward is linear in them too. `score`
    holds the weights of the reward for shares of 1. Without a gate, every share is 1.
    """

    config: Any
    score: Any
    directions: torch.Tensor
    empty_features: torch.Tensor

    def reward(
        self, features: torch.Tensor, shares: torch.Tensor | None = None, pessimistic: bool = True
    ) -> torch.Tensor:
        """Turn (B, K) features into (B, 1) rewards, in float32 under any autocast.

        Args:
            features: (B, K) features.
            shares: (B, objectives) shares of the objectives, see `shares_of`. By default each is 1, so that the reward
                is the weighted sum without the gate.
            pessimistic: Whether to apply the pessimism of the configuration.
        """
        with torch.autocast(features.device.type, enabled=False):
            reward = self.score(features.to(self.score.dtype)).float()
        if shares is not None:
            means = shares.new_tensor([of["reward_mean"] for of in self.config.objectives])
            above = (self.objective_rewards(features) - means) * self.objective_factors().to(shares)
            reward = reward + ((shares - 1) * above).sum(-1, keepdim=True)
        if pessimistic and self.config.pessimism:
            reward = reward - self.config.pessimism * self.reward_deviation(features)[:, None]
        return reward

    def average_prompt(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor,
        responses: Sequence[tuple[int, int]],
    ) -> torch.Tensor | None:
        """Average the tokens of each prompt, (B, d_model); zero without a prompt, and None without a gate.

        Args:
            hidden: (B, T, d_model) residual streams.
            input_ids: (B, T) token ids.
            attention_mask: (B, T) attention mask.
            responses: Place of the response in each text, see `find_responses`.
        """
        if self.score.gate is None or input_ids is None:
            return None
        prompts = find_prompts(input_ids, attention_mask, responses, self.config.response_marks)
        pooled = pooled_tokens(attention_mask, prompts, "mean").to(hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            return pool_representations(hidden, pooled, self.config.representation_norm)

    def prompt_features(self, prompt: torch.Tensor) -> torch.Tensor:
        """Project average prompts (B, d_model) on the directions, (B, K); steering does not change them."""
        return prompt @ self.directions.to(prompt).T

    def shares_of(self, prompt: torch.Tensor | None) -> torch.Tensor | None:
        """Turn average prompts (B, d_model) into the (B, objectives) shares of the objectives, by the gate.

        A share is the factor by which an objective counts more or less than its weight says. Shares are positive, and
        1 on average over the objectives. Without a prompt each is 1. Without a gate the result is None.
        """
        if self.score.gate is None or prompt is None:
            return None
        with torch.autocast(prompt.device.type, enabled=False):
            shares = self.score.gate(self.prompt_features(prompt))
        return torch.where((prompt != 0).any(-1, keepdim=True), shares, 1.0)

    def effective_weights(self, shares: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the weight of each feature in the reward: (B, K) with the shares of B prompts, or else (1, K)."""
        if shares is None:
            return self.score.weight.detach()
        assert self.objectives is not None
        tilt = (shares - 1) * self.objective_factors().to(shares)  # (B, objectives)
        return self.score.weight.detach() + tilt.to(self.objectives.weight) @ self.objectives.weight

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

    def objective_factors(self) -> torch.Tensor:
        """Return the (objectives,) factors of the objectives' rewards in the reward: `weight / reward_std`."""
        assert self.objectives is not None
        return self.objectives.weight.new_tensor([of["weight"] / of["reward_std"] for of in self.config.objectives])

    @torch.no_grad()
    def weigh(self, weights: Mapping[str, float]) -> None:
        """Change the weights of objectives in the reward, in place; other objectives keep their weights.

        `reward_std` and `reward_temperature` are scaled with the weights' norm. An empty response keeps a low reward:
        if an objective has a negative weight, the empty response's reward for it is mirrored at the objective's mean.

        Args:
            weights: Weights by objective name. An objective with the weight 0 does not count.

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
        factors = self.objective_factors()
        self.score.weight.copy_(factors[None] @ self.objectives.weight)
        self.score.bias.copy_(factors[None] @ (self.objectives.bias - means))
        above = self.objectives(self.empty_features.to(means)) - means  # (objectives,)
        wanted = torch.where(factors == 0, above, -above.abs() * factors.sign())
        self.empty_features += (torch.linalg.pinv(self.objectives.weight) @ (wanted - above)).to(self.empty_features)


def _apply(heads: Affine | None, features: torch.Tensor) -> torch.Tensor | None:
    """Apply further heads on their device and in their data type; return None if there are no such heads."""
    if heads is None:
        return None
    with torch.autocast(features.device.type, enabled=False):
        return heads(features.to(heads.weight)).float().to(features.device)
