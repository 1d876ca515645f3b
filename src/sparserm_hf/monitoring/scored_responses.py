"""Features and rewards of responses, without steering, from which drift is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from ..conversations import TokenizedText
from ..evaluation import Control, apply_layers, find_twin
from ..modeling.backbone_sparserm import residual_stream
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..modeling.pooling_sparserm import pool_representations, pooled_tokens
from ..runtime import as_numpy, batch_tokens, pad_texts, plan_batches


@dataclass(frozen=True)
class ScoredResponses:
    """Features and rewards of N responses, without steering.

    Attributes:
        features: (N, F) input features of the head.
        rewards: (N,) rewards.
        twin: (N,) rewards of the dense twin; None without a twin.

    Example:
        >>> scored = ScoredResponses(np.zeros((2, 3)), np.array([0.5, 0.7]), None)
        >>> ScoredResponses.joined([scored, scored]).last(3).rewards
        array([0.7, 0.5, 0.7])
    """

    features: np.ndarray
    rewards: np.ndarray
    twin: np.ndarray | None

    @classmethod
    def joined(cls, parts: Sequence[ScoredResponses]) -> ScoredResponses:
        """Concatenate the responses of several parts."""
        twins = [part.twin for part in parts if part.twin is not None]
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.rewards for part in parts]),
            np.concatenate(twins) if twins else None,
        )

    def last(self, count: int) -> ScoredResponses:
        """Keep the last `count` responses."""
        twin = None if self.twin is None else self.twin[-count:]
        return ScoredResponses(self.features[-count:], self.rewards[-count:], twin)


def score_for_drift(
    model: SparseRMForSequenceClassification, controls: Sequence[Control], texts: list[TokenizedText]
) -> ScoredResponses:
    """Score responses by a reward model and its dense twin, without steering and pessimism; nothing is cached.

    Args:
        model: The reward model.
        controls: The model's controls. The twin's rewards are left out if the twin is not among them.
        texts: Texts that end with the responses.
    """
    config, device = model.config, model.directions.device
    twin = find_twin(controls)
    features, rewards = np.zeros((len(texts), len(config.latents))), np.zeros(len(texts))
    of_twin = None if twin is None else np.zeros(len(texts))
    with tqdm(total=len(texts), desc="Scoring", unit="text", delay=2) as bar, torch.inference_mode():
        for batch in plan_batches([len(text.ids) for text in texts], batch_tokens(device)):
            ids, mask = pad_texts([texts[i].ids for i in batch], device)
            hidden = residual_stream(model.model, ids, mask)
            places = [texts[i].place for i in batch]
            where = pooled_tokens(mask, places, config.pooling).to(hidden.device)
            mean = pool_representations(hidden, where, config.representation_norm)
            projected = model.project(mean, where.any(-1, keepdim=True), steered=False)
            features[batch] = as_numpy(projected)
            shares = model.shares_of(model.average_prompt(hidden, ids, mask, places))
            rewards[batch] = as_numpy(model.reward(projected, shares, pessimistic=False)[:, 0])
            if twin and of_twin is not None:
                of_twin[batch] = apply_layers(twin.layers, as_numpy(mean))
            bar.update(len(batch))
    return ScoredResponses(features, rewards, of_twin)
