"""Split pairs into folds of a cross-validation, with all pairs of one prompt in the same fold."""

from __future__ import annotations

import numpy as np

FOLDS = 5


def group_folds(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assign preference pairs to folds, so that all pairs of one group are in one fold.

    Thus no held-out pair has a prompt that the head was fitted to. scikit-learn's `GroupKFold` would shuffle the
    groups in another order, and every published figure would have to be measured again.

    Args:
        groups: (N,) number of each pair's group, such as its prompt.
        folds: Number of folds; with fewer groups there are as many folds as groups.
        seed: Seed of the shuffle.

    Returns:
        (N,) number of each pair's fold, counted from 0.

    Example:
        >>> group_folds(np.array([7, 7, 3, 4]), folds=2, seed=0)
        array([1, 1, 0, 0])
    """
    names, group = np.unique(groups, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[group] % folds


def pairs_outside(fold_of: np.ndarray, fold: int | None) -> np.ndarray:
    """List the pairs outside a fold, or all pairs if the fold is None.

    Example:
        >>> pairs_outside(np.array([0, 1, 0]), 0), pairs_outside(np.array([0, 1, 0]), None)
        (array([1]), array([0, 1, 2]))
    """
    return np.arange(len(fold_of)) if fold is None else np.flatnonzero(fold_of != fold)
