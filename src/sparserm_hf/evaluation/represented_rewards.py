"""Compute rewards and evaluations from cached representations, without running the base model again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..conversations import TokenizedPreferences
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Representations, Shard
from ..runtime import as_numpy
from .controls import Control
from .evaluation import Evaluation
from .row_names import RowName


@torch.inference_mode()
def shard_features(model: SparseRMForSequenceClassification, shard: Shard) -> torch.Tensor:
    """Compute the head's input features of the n texts in a shard, (n, K)."""
    mean = torch.from_numpy(shard.mean).to(model.directions.device)
    return model.project(mean, (mean != 0).any(-1, keepdim=True))


@torch.inference_mode()
def shard_shares(model: SparseRMForSequenceClassification, shard: Shard) -> torch.Tensor | None:
    """Compute the shares that the gate gives the objectives for the prompts of a shard's n texts, (n, objectives).

    The result is None for a model without a gate.
    """
    return model.shares_of(
        torch.from_numpy(shard.prompt_mean).to(model.directions.device) if model.config.gate else None
    )


def reward_represented(
    model: SparseRMForSequenceClassification, representations: Representations, gated: bool = True
) -> np.ndarray:
    """Compute the reward model's (N,) rewards of N represented texts; without its gate unless `gated`."""

    @torch.inference_mode()
    def of_shard(shard: Shard) -> np.ndarray:
        shares = shard_shares(model, shard) if gated else None
        return as_numpy(model.reward(shard_features(model, shard), shares)[:, 0])

    return representations.read(of_shard)


def reward_objectives(
    model: SparseRMForSequenceClassification, representations: Representations
) -> dict[str, np.ndarray]:
    """Compute a combined reward model's (N,) rewards of N represented texts, by objective; empty for other models."""

    @torch.inference_mode()
    def of_shard(shard: Shard) -> np.ndarray:
        return as_numpy(model.objective_rewards(shard_features(model, shard)))

    names = model.config.objective_names
    return dict(zip(names, representations.read(of_shard).T, strict=True)) if names else {}


def objective_margins(
    model: SparseRMForSequenceClassification, representations: Representations, pairs: TokenizedPreferences
) -> np.ndarray:
    """Compute the standardised reward differences of P represented pairs by objective, (P, objectives)."""
    rewards, scales = reward_objectives(model, representations), [of["reward_std"] for of in model.config.objectives]
    margins = [(r[pairs.chosen] - r[pairs.rejected]) / std for r, std in zip(rewards.values(), scales, strict=True)]
    return np.stack(margins, 1)


def prompt_features(
    model: SparseRMForSequenceClassification, representations: Representations, pairs: TokenizedPreferences
) -> np.ndarray:
    """Compute the (P, K) features of the prompts of P pairs; the representations must include the prompts."""

    @torch.inference_mode()
    def of_shard(shard: Shard) -> np.ndarray:
        return as_numpy(model.prompt_features(torch.from_numpy(shard.prompt_mean).to(model.directions.device)))

    return representations.read(of_shard)[pairs.chosen]


def reward_with_controls(
    model: SparseRMForSequenceClassification,
    controls: Sequence[Control],
    representations: Representations,
    lengths: np.ndarray,
    latents: Sequence[int],
) -> dict[str, np.ndarray]:
    """Compute the rewards of represented texts, (N,) by row name, by the reward model and by each of its controls.

    For a combined reward model, each objective counts as a control, and so does the sum without the gate.

    Args:
        model: The reward model.
        controls: Its controls. Controls on activations are left out if the representations hold no activations.
        representations: Representations of N texts.
        lengths: (N,) tokens of each text.
        latents: Columns of the selected latents in the stored activations; empty if no activations are stored.
    """
    rewards = {RowName.REWARD_MODEL: reward_represented(model, representations)}
    if model.config.gate:
        rewards[RowName.UNGATED] = reward_represented(model, representations, gated=False)
    rewards |= {RowName.alone(name): of for name, of in reward_objectives(model, representations).items()}
    for control in controls:
        if control.reads != "activations" or len(latents):
            rewards[control.name] = control.rewards(representations, lengths, latents)
    return rewards


def evaluate_representations(
    model: SparseRMForSequenceClassification,
    controls: Sequence[Control],
    representations: Representations,
    pairs: TokenizedPreferences,
    styles: dict[str, np.ndarray],
    latents: Sequence[int],
) -> Evaluation:
    """Evaluate a reward model on represented pairs; see `reward_with_controls` and, for `styles`, `Evaluation`."""
    rewards = reward_with_controls(model, controls, representations, pairs.lengths, latents)
    margins = {name: r[pairs.chosen] - r[pairs.rejected] for name, r in rewards.items()}
    return Evaluation(margins, styles, model.config.reward_temperature)
