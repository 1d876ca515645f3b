"""Calibration: probabilities from reward differences."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar


def fit_temperature(margins: np.ndarray) -> float:
    """Fit the temperature T that makes sigmoid(margin / T) most likely (Guo et al., 2017, arXiv 1706.04599).

    Args:
        margins: (N,) reward differences, chosen minus rejected, of held-out pairs.

    Returns:
        T, in units of reward, between a hundredth and a hundred times the root mean square of the margins. Without
        these bounds there is no best T if all margins are positive, or if they are uninformative. T is 1 if all
        margins are zero.

    Example:
        >>> margins = np.array([2.0, 2.0, 2.0, -2.0])  # three of four pairs are ranked right
        >>> probability = 1 / (1 + np.exp(-2.0 / fit_temperature(margins)))
        >>> round(float(probability), 3)
        0.75
    """
    size = float(np.sqrt(np.mean(np.square(margins))))
    if size == 0:
        return 1.0

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -margins / size * np.exp(-log_t)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(100), np.log(100)), method="bounded")
    return size * float(np.exp(found.x))
