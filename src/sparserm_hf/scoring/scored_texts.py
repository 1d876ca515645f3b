"""scoring.scored_texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from ..conversations import TokenizedText
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, as_numpy, batch_tokens, pad_texts, plan_batches


class Scores(NamedTuple):
    """What a reward model makes of N texts.

    Attributes:
        features: (N, F) what its head read.
        rewards: (N,)
    """

    features: np.ndarray
    rewards: np.ndarray


def score_texts(model: SparseRMForSequenceClassification, texts: list[TokenizedText]) -> Scores:
    """Score texts in batches of similar length."""
    device = model.directions.device
    features, rewards = np.zeros((len(texts), len(model.config.latents))), np.zeros(len(texts))
    for batch in plan_batches([len(text.ids) for text in texts], batch_tokens(device)):
        ids, mask = pad_texts([texts[i].ids for i in batch], device)
        with torch.inference_mode():
            read = model.extract_features(ids, mask, responses=[texts[i].place for i in batch])
            features[batch] = as_numpy(read)
            rewards[batch] = as_numpy(model.reward(read)[:, 0])
    return Scores(features, rewards)


def check_rewards(rewards: Iterable[float], where: str) -> None:
    """Raise a `SparseRMError` unless the rewards of a row are numbers.

    Args:
        rewards: The rewards.
        where: The row, for the error.
    """
    if not np.isfinite([*rewards]).all():
        raise SparseRMError(
            f"{where} has a reward that is not finite: the base model overflows on it; try the type float32."
        )
