"""An ensemble of linear reward heads, each fitted to a bootstrap sample of the prompts.

Where the heads disagree, the training pairs do not determine the reward. Prompts are drawn, not pairs, because pairs
of one prompt resemble each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from ..runtime import SparseRMError, process_state
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
    """

    weights: np.ndarray
    biases: np.ndarray


def fit_ensemble(
    features: np.ndarray, pairs: PairIndices, objective: Objective, l2: float, heads: int, seed: int
) -> Ensemble:
    """Fit each head to a bootstrap sample: as many prompts as there are, drawn with replacement.

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
            f"An ensemble draws samples of the prompts, but there are only {len(names)}: add prompts until "
            f"there are at least {FEWEST_PROMPTS}, or leave ensemble out."
        )
    of_pairs, rng = pairs.features(features), np.random.default_rng(seed)
    weights = np.zeros((heads, features.shape[1]))
    hidden = not process_state().is_main_process
    for head in tqdm(range(heads), "Ensemble", unit="head", delay=2, leave=False, disable=hidden):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[prompt]  # (N,)
        drawn = np.repeat(np.arange(len(pairs)), times)
        (fitted,) = fit_linear_path(of_pairs.rows(drawn), objective.rows(drawn), (l2,))
        weights[head] = fitted.layers[0][0][0]
    return Ensemble(weights, -weights @ features.mean(0))
