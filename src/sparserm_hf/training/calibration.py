"""From reward differences to probabilities."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar


def fit_temperature(margins: np.ndarray) -> float:
    """The T for which sigmoid(margin / T) is most likely (Guo et al., 2017, arXiv 1706.04599).

    Args:
        margins: (N,) reward differences, chosen minus rejected, of pairs that the head was not fitted to.

    Returns:
        T, in units of reward, between a hundredth and a hundred times the margins' root mean square: where margins
        say nothing or everything, no T is the best. 1 where all margins are zero.
    """
    size = float(np.sqrt(np.mean(np.square(margins))))
    if size == 0:
        return 1.0

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -margins / size * np.exp(-log_t)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(100), np.log(100)), method="bounded")
    return size * float(np.exp(found.x))
