"""The drift reference: statistics of the training responses, to compare other responses with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..runtime import reading
from .controls import Control, check_arrays
from .row_names import RowName

REFERENCE_FILE = "drift.safetensors"
BEYOND = 0.01  # share of training responses outside a feature's range, and share beyond the limit of disagreement


@dataclass(frozen=True)
class DriftReference:
    """Statistics of the training responses over F features, without steering.

    Attributes:
        mean: (F,) mean of each feature.
        std: (F,) standard deviation of each feature.
        low: (F,) lower end of the range that holds 99% of a feature's values.
        high: (F,) upper end of the range.
        rewards: (2,) mean and standard deviation of the rewards.
        twin: (3,) mean and standard deviation of the dense twin's rewards, then the 99% quantile of the distance
            between the two standardised rewards; empty without a twin. The dense twin is the control that reads the
            whole representation.

    Example:
        >>> features = np.array([[0.0, 1.0], [2.0, 1.0]])
        >>> reference = DriftReference.of(features, rewards=features[:, 0], twin=None)
        >>> reference.mean, reference.standardise(np.array([3.0]))
        (array([1., 1.]), array([2.]))
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rewards: np.ndarray
    twin: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, rewards: np.ndarray, twin: np.ndarray | None) -> DriftReference:
        """Compute the statistics of N training responses.

        Args:
            features: (N, F) features.
            rewards: (N,) rewards.
            twin: (N,) rewards of the dense twin; None without a twin.
        """
        low, high = np.quantile(features, [BEYOND / 2, 1 - BEYOND / 2], axis=0)
        of_rewards, of_twin = _mean_and_std(rewards), np.zeros(0)
        if twin is not None:
            of_twin = _mean_and_std(twin)
            distances = np.abs(_standardise(rewards, of_rewards) - _standardise(twin, of_twin))
            of_twin = np.append(of_twin, np.quantile(distances, 1 - BEYOND))
        return cls(features.mean(0), features.std(0), low, high, of_rewards, of_twin)

    def standardise(self, rewards: np.ndarray) -> np.ndarray:
        """Express (N,) rewards in standard deviations from the mean training reward."""
        return _standardise(rewards, self.rewards)

    def disagreements(self, rewards: np.ndarray, twin: np.ndarray) -> np.ndarray:
        """Mark, in (N,), the rewards that differ more from the twin's than 99% of the training rewards do.

        Args:
            rewards: (N,) rewards.
            twin: (N,) rewards of the dense twin.
        """
        return np.abs(self.standardise(rewards) - _standardise(twin, self.twin)) > self.twin[2]

    def save(self, path: Path) -> None:
        """Write the statistics to a file beside the checkpoint; the file holds no text."""
        save_file(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> DriftReference:
        """Load the statistics that `save` wrote.

        Raises:
            SparseRMError: The file is broken.
        """
        with reading(f"The file {path.name} beside the reward model"), safe_open(path, "numpy") as file:
            reference = cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            features = reference.mean.shape[:1]
            shapes = {name: features for name in ("mean", "std", "low", "high")} | {"rewards": (2,)}
            shapes["twin"] = (3,) if len(reference.twin) else (0,)
            check_arrays(vars(reference), shapes)
            return reference


def _mean_and_std(x: np.ndarray) -> np.ndarray:
    return np.array([x.mean(), x.std() or 1.0])


def _standardise(x: np.ndarray, mean_and_std: np.ndarray) -> np.ndarray:
    return (x - mean_and_std[0]) / mean_and_std[1]


def find_twin(controls: Sequence[Control]) -> Control | None:
    """Find the dense twin, the control that reads the whole representation; None if it is missing."""
    return next((control for control in controls if control.name == RowName.DENSE), None)
