"""Accuracy and margins of rewards on preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


@dataclass(frozen=True)
class PairMetrics:
    """What rewards do on N pairs.

    Attributes:
        pairs: N.
        accuracy: Share of pairs whose chosen response has the higher reward; a tie counts one half.
        low: Lower end of the accuracy's 95% interval (Wilson).
        high: Upper end.
        margin: Mean reward difference, chosen minus rejected.
    """

    pairs: int
    accuracy: float
    low: float
    high: float
    margin: float


def pair_metrics(margins: np.ndarray) -> PairMetrics:
    """Measure (N,) reward differences, chosen minus rejected."""
    accuracy = pair_accuracy(margins)
    interval = binomtest(round(accuracy * len(margins)), len(margins)).proportion_ci(method="wilson")
    return PairMetrics(len(margins), accuracy, float(interval.low), float(interval.high), float(margins.mean()))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, of (N,) and (N,); 0 where one of them never changes."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0


def pair_accuracy(margins: np.ndarray) -> float:
    """Share of pairs whose reward difference is positive; a tie counts one half."""
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))
