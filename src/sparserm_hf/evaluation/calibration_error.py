"""Measure calibration: the distance between predicted probabilities and observed accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import binned_statistic

BINS = 10  # number of bins of the calibration error


@dataclass(frozen=True)
class CalibrationBins:
    """Preference pairs, binned by the confidence in the response with the higher reward; no bin is empty.

    Attributes:
        confidence: (bins,) mean of sigmoid(|margin| / temperature), from 0.5 to 1.
        accuracy: (bins,) share of pairs with a positive margin; a tie counts one half.
        count: (bins,) number of pairs.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def calibration_bins(margins: np.ndarray, temperature: float) -> CalibrationBins:
    """Sort pairs into ten bins of equal width.

    Args:
        margins: (N,) reward differences, chosen minus rejected.
        temperature: Temperature of the probabilities, in units of reward.
    """
    confidence = expit(np.abs(margins) / temperature)
    right = np.where(margins == 0, 0.5, margins > 0)
    values = [confidence, right, np.ones(len(margins))]
    mean_confidence, accuracy, count = binned_statistic(confidence, values, "sum", BINS, (0.5, 1.0)).statistic
    used = count > 0
    return CalibrationBins(mean_confidence[used] / count[used], accuracy[used] / count[used], count[used])


def calibration_error(margins: np.ndarray, temperature: float) -> float:
    """Compute the expected calibration error: the mean distance between confidence and accuracy over the bins.

    Args:
        margins: (N,) reward differences, chosen minus rejected.
        temperature: Temperature of the probabilities, in units of reward.

    Example:
        >>> margins = np.array([2.0] * 8 + [-2.0] * 2)  # 80% are right
        >>> round(calibration_error(margins, 2 / np.log(4)), 6)  # each with the confidence 80%
        0.0
    """
    bins = calibration_bins(margins, temperature)
    return float(np.average(np.abs(bins.accuracy - bins.confidence), weights=bins.count))
