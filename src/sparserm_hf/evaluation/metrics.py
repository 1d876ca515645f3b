"""Metrics on preference pairs: accuracy, margin, correlation, and the paired difference of two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, pearsonr, ttest_1samp


@dataclass(frozen=True)
class PairMetrics:
    """Accuracy and margin on N preference pairs.

    Attributes:
        pairs: Number of pairs, N.
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
    """Compute accuracy, interval and mean margin of (N,) reward differences, chosen minus rejected.

    Example:
        >>> print(pair_metrics(np.array([0.5, 1.5, -0.2, 0.0])))
        62.5% (15.0 to 85.0)
    """
    accuracy = pair_accuracy(margins)
    interval = binomtest(round(accuracy * len(margins)), len(margins)).proportion_ci(method="wilson")
    return PairMetrics(len(margins), accuracy, float(interval.low), float(interval.high), float(margins.mean()))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Compute Pearson's correlation of two arrays (N,); 0 if either is constant.

    Example:
        >>> round(correlation(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0])), 6)
        0.0
    """
    return float(pearsonr(x, y).statistic) if x.std() > 0 and y.std() > 0 else 0.0


def pair_accuracy(margins: np.ndarray) -> float:
    """Compute the share of positive reward differences; a tie counts one half.

    Example:
        >>> pair_accuracy(np.array([0.5, 1.5, -0.2, 0.0]))
        0.625
    """
    return float(pair_credits(margins).mean())


def pair_credits(margins: np.ndarray) -> np.ndarray:
    """Give each pair 1 if its reward difference is positive, 1/2 for a tie, else 0, in an array of the same shape.

    Example:
        >>> pair_credits(np.array([0.5, 1.5, -0.2, 0.0]))
        array([1. , 1. , 0. , 0.5])
    """
    return (margins > 0) + 0.5 * (margins == 0)


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two means over the same N items, such as two accuracies on the same pairs.

    Attributes:
        mean: The first mean minus the second.
        half: Half of the difference's 95% interval (Student, paired), which is `mean - half` to `mean + half`; None
            where all items differ by the same amount, from which no interval can be estimated.
    """

    mean: float
    half: float | None

    def __str__(self) -> str:
        mean, half = 100 * self.mean, 100 * (self.half or 0.0)
        return f"{mean:+.1f}" if self.half is None else f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def paired_difference(values: np.ndarray, reference: np.ndarray) -> PairedDifference:
    """Compare the mean of (N,) values with that of (N,) reference values of the same items.

    Example:
        >>> print(paired_difference(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])))  # in points
        +25.0 (-54.6 to +104.6)
        >>> paired_difference(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
        PairedDifference(mean=0.0, half=None)
    """
    differences = values - reference
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return PairedDifference(mean, None)
    return PairedDifference(mean, float(ttest_1samp(differences, 0).confidence_interval(0.95).high) - mean)


def pairs_by_length(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Find the pairs whose chosen response is shorter, as long, or longer than the rejected response.

    Args:
        tokens: (N, 2) lengths of the chosen and of the rejected responses.

    Returns:
        Indices of pairs by kind.

    Example:
        >>> pairs_by_length(np.array([[9, 4], [5, 5], [3, 7]]))
        {'shorter chosen': array([2]), 'equally long': array([1]), 'longer chosen': array([0])}
    """
    sign = np.sign(np.subtract(*tokens.T))
    kinds = {"shorter chosen": -1, "equally long": 0, "longer chosen": 1}
    return {kind: np.flatnonzero(sign == of_kind) for kind, of_kind in kinds.items()}
