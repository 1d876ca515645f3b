"""Accuracy and margin of rewards on preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class PairMetrics:
    """Accuracy and margin on N preference pairs.

    Attributes:
        pairs: N.
        accuracy: Share of pairs whose chosen response has the higher reward; a tie counts one half.
        low: Lower end of the accuracy's 95% interval (Wilson).
        high: Upper end of the interval.
        margin: Mean reward difference, chosen minus rejected.
    """

    pairs: int
    accuracy: float
    low: float
    high: float
    margin: float

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f})"


def pair_metrics(margins: np.ndarray) -> PairMetrics:
    """Measure (N,) reward differences, chosen minus rejected.

    Example:
        >>> print(pair_metrics(np.array([0.5, 1.5, -0.2, 0.0])))
        62.5% (15.0 to 85.0)
    """
    accuracy = pair_accuracy(margins)
    interval = binomtest(round(accuracy * len(margins)), len(margins)).proportion_ci(method="wilson")
    return PairMetrics(len(margins), accuracy, float(interval.low), float(interval.high), float(margins.mean()))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Compute Pearson's correlation of (N,) and (N,); 0 where either is constant.

    Example:
        >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0]))
        0.0
    """
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0


def pair_accuracy(margins: np.ndarray) -> float:
    """Compute the share of positive reward differences; a tie counts one half.

    Example:
        >>> pair_accuracy(np.array([0.5, 1.5, -0.2, 0.0]))
        0.625
    """
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))
