"""evaluation.calibration_error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

BINS = 10  # of the calibration error


@dataclass(frozen=True)
class CalibrationBins:
    """Pairs by the confidence in the response with the higher reward; empty bins are left out.

    Attributes:
        confidence: (bins,) mean of sigmoid(|margin| / temperature), from 0.5 to 1.
        accuracy: (bins,) share of pairs whose margin is positive; a tie is half right.
        count: (bins,) pairs.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def calibration_bins(margins: np.ndarray, temperature: float) -> CalibrationBins:
    """(N,) reward differences, chosen minus rejected, in ten bins of equal width."""
    confidence = expit(np.abs(margins) / temperature)
    right = np.where(margins == 0, 0.5, margins > 0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    used = count > 0
    mean_confidence, accuracy = (np.bincount(bins, x, BINS)[used] / count[used] for x in (confidence, right))
    return CalibrationBins(mean_confidence, accuracy, count[used])


def calibration_error(margins: np.ndarray, temperature: float) -> float:
    """Expected calibration error of N pairs: how far confidence is from accuracy, over the bins."""
    bins = calibration_bins(margins, temperature)
    return float(np.average(np.abs(bins.accuracy - bins.confidence), weights=bins.count))
