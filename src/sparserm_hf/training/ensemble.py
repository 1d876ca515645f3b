"""An ensemble of linear reward heads, each fitted to a bootstrap sample of the prompts.

Where the heads disagree, the training pairs do not determine the reward. Prompts are drawn, not pairs, because pairs
of one prompt resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ..runtime import SparseRMError
from .linear_head import fit_linear_path
from .objective import Objective
from .represented_texts import PairIndices

FEWEST_PROMPTS = 10


@dataclass(frozen=True)
class Ensemble:
    """E linear heads on the same K features.

    Attributes:
        weights: (E, K) weights.
        biases: (E,) biases: the mean reward of the training responses is zero in each head.
        temperature: The mean over heads of sigmoid(reward difference / temperature) is the probability that a response
            is preferred.
    """

    weights: np.ndarray
    biases: np.ndarray
    temperature: float


def fit_ensemble(
    features: np.ndarray, pairs: PairIndices, objective: Objective, l2: float, heads: int, seed: int
) -> Ensemble:
    """Fit each head to as many prompts as there are, drawn with replacement.

    The temperature is fitted out of the bag: each pair is judged by the heads whose samples lack its prompt.

    Args:
        features: (T, K) features of the training texts.
        pairs: Preference pairs of these texts.
        objective: Objective on the pairs.
        l2: L2 penalty.
        heads: Number of heads, E.
        seed: Seed of the draws.

    Raises:
        SparseRMError: There are too few prompts.
    """
    names, prompt = np.unique(pairs.groups, return_inverse=True)
    if len(names) < FEWEST_PROMPTS:
        raise SparseRMError(
            f"An ensemble draws samples of the prompts, but there are only {len(names)}: add prompts, up to "
            f"{FEWEST_PROMPTS} at least, or leave ensemble out."
        )
    of_pairs, rng = pairs.features(features), np.random.default_rng(seed)
    weights, margins = np.zeros((heads, features.shape[1])), np.full((len(pairs), heads), np.nan)
    for head in range(heads):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[prompt]  # (N,)
        drawn = np.repeat(np.arange(len(pairs)), times)
        (fitted,) = fit_linear_path(of_pairs.rows(drawn), objective.rows(drawn), (l2,))
        weights[head] = fitted.layers[0][0][0]
        out = times == 0
        margins[out, head] = (of_pairs.chosen[out] - of_pairs.rejected[out]) @ weights[head]
    return Ensemble(weights, -weights @ features.mean(0), fit_mean_temperature(margins))


def fit_mean_temperature(margins: np.ndarray) -> float:
    """Fit the temperature T that makes the mean over heads of sigmoid(margin / T) most likely.

    Args:
        margins: (N, E) reward differences, chosen minus rejected; NaN where a head does not judge a pair.

    Returns:
        T, in units of reward, within the bounds of `fit_temperature`.

    Example:
        >>> margins = np.array([[2.0, np.nan], [2.0, 2.0], [np.nan, 2.0], [-2.0, -2.0]])
        >>> probability = 1 / (1 + np.exp(-2.0 / fit_mean_temperature(margins)))
        >>> round(float(probability), 3)
        0.75
    """
    margins = margins[~np.isnan(margins).all(1)]
    size = float(np.sqrt(np.nanmean(np.square(margins)))) if len(margins) else 0.0
    if size == 0:
        return 1.0

    def loss(log_t: float) -> float:
        probabilities = np.nanmean(expit(margins / size * np.exp(-log_t)), axis=1)
        return float(-np.log(np.maximum(probabilities, 1e-12)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(100), np.log(100)), method="bounded")
    return size * float(np.exp(found.x))
