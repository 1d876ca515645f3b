"""Calibration: probabilities from reward differences, and weights of objectives fitted to pairs."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

WEIGHT_PENALTY = 1e-3  # factor of half the sum of the squared weights, which is added to the mean loss of the pairs


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


def fit_weights(margins: np.ndarray) -> np.ndarray:
    """Fit weights of objectives, none below zero, that make the preferences of pairs most likely.

    The probability of a preference is sigmoid(sum of weight * margin), as in the Bradley-Terry model. A slight L2
    penalty keeps the weights finite if they can rank all pairs right.

    Args:
        margins: (N, objectives) reward differences by objective, chosen minus rejected, of a similar size.

    Returns:
        (objectives,) weights.

    Example:
        >>> margins = np.array([[1.0, -0.2], [2.0, -0.1], [-0.5, -0.1], [1.5, -0.3]])
        >>> fit_weights(margins).round(1)
        array([1.6, 0. ])
    """

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = margins @ weights
        value = np.logaddexp(0.0, -z).mean() + 0.5 * WEIGHT_PENALTY * weights @ weights
        return value, WEIGHT_PENALTY * weights - expit(-z) @ margins / len(z)

    objectives = margins.shape[1]
    return minimize(loss, np.zeros(objectives), jac=True, method="L-BFGS-B", bounds=[(0, None)] * objectives).x
