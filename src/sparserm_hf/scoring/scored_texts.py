"""Score tokenised texts in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from ..conversations import TokenizedText
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, as_numpy, batch_tokens, pad_texts, plan_batches


class Scores(NamedTuple):
    """Features and rewards of N texts.

    Attributes:
        features: (N, F) features that the head reads.
        rewards: (N,) rewards.
        shares: (N, objectives) shares of the objectives for the prompts, see `shares_of`; (N, 0) without a gate.
    """

    features: np.ndarray
    rewards: np.ndarray
    shares: np.ndarray


def score_texts(
    model: SparseRMForSequenceClassification,
    texts: list[TokenizedText],
    advance: Callable[[int], object] | None = None,
) -> Scores:
    """Score texts in batches of similar length.

    Args:
        model: The reward model.
        texts: Texts from the model's encoder; see `encoder_of`.
        advance: Called after each batch with its number of texts, for a progress bar.

    Example:
        ```python
        from sparserm_hf import load_reward_model
        from sparserm_hf.scoring import encoder_of, score_texts

        model, tokenizer = load_reward_model("my-reward-model")
        encoder = encoder_of(model, tokenizer)
        scores = score_texts(model, [encoder("The capital of Italy is Rome.")])
        print(scores.rewards, scores.features.shape)
        ```
    """
    device, config = model.directions.device, model.config
    features, rewards = np.zeros((len(texts), len(config.latents))), np.zeros(len(texts))
    shares = np.ones((len(texts), len(config.objectives) if config.gate else 0))
    for batch in plan_batches([len(text.ids) for text in texts], batch_tokens(device)):
        ids, mask = pad_texts([texts[i].ids for i in batch], device)
        with torch.inference_mode():
            found = model.head_input(ids, mask, responses=[texts[i].place for i in batch])
            features[batch] = as_numpy(found.features)
            rewards[batch] = as_numpy(model.reward(*found)[:, 0])
            if found.shares is not None:
                shares[batch] = as_numpy(found.shares)
        if advance is not None:
            advance(len(batch))
    return Scores(features, rewards, shares)


def further_scores(model: SparseRMForSequenceClassification, features: np.ndarray) -> list[dict[str, Any]]:
    """Compute rewards by objective, and standard deviations over the ensemble, for N texts.

    Args:
        model: The reward model.
        features: (N, K) features that the head reads.

    Returns:
        A dictionary for each text. A combined model adds `by_objective`, the rewards by objective name. An ensemble
        adds `deviation`, the standard deviation of the reward.
    """
    found: list[dict[str, Any]] = [{} for _ in features]
    given = torch.from_numpy(features).float().to(model.directions.device)
    with torch.inference_mode():
        rewards, deviations = model.objective_rewards(given), model.reward_deviation(given)
    if rewards is not None:
        for of_text, row in zip(found, rewards.tolist(), strict=True):
            of_text["by_objective"] = dict(zip(model.config.objective_names, row, strict=True))
    if deviations is not None:
        for of_text, deviation in zip(found, deviations.tolist(), strict=True):
            of_text["deviation"] = deviation
    return found


def check_rewards(rewards: Iterable[float], where: str) -> None:
    """Check that the rewards of a row are finite.

    Args:
        rewards: The rewards.
        where: Name of the row, for the error.

    Raises:
        SparseRMError: A reward is not finite.

    Example:
        >>> check_rewards([0.5, -1.25], "Row 3")
    """
    if not np.isfinite([*rewards]).all():
        raise SparseRMError(
            f"{where} has a reward that is not finite, as the base model overflows on it: set dtype to float32."
        )
