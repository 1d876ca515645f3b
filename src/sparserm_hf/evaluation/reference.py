"""evaluation.reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..runtime import reading
from .controls import Control, check_arrays

REFERENCE_FILE = "drift.safetensors"
TWIN = "dense representation"  # the control that reads the whole representation: its judgement is compared
BEYOND = 0.01  # share of the training responses outside the range, and with more disagreement


@dataclass(frozen=True)
class TextReadings:
    """What a reward model and its twin make of N texts, without steering.

    Attributes:
        features: (N, F) what the head reads.
        rewards: (N,) of the reward model.
        twin: (N,) rewards by the same head on the dense representation; None where there is no such control.
    """

    features: np.ndarray
    rewards: np.ndarray
    twin: np.ndarray | None

    @classmethod
    def joined(cls, parts: Sequence[TextReadings]) -> TextReadings:
        """Several as one."""
        twins = [part.twin for part in parts if part.twin is not None]
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.rewards for part in parts]),
            np.concatenate(twins) if twins else None,
        )

    def last(self, count: int) -> TextReadings:
        """Those of the last texts alone."""
        twin = None if self.twin is None else self.twin[-count:]
        return TextReadings(self.features[-count:], self.rewards[-count:], twin)


@dataclass(frozen=True)
class Drift:
    """How far N texts are from the training responses.

    Attributes:
        texts: N.
        shift: (F,) by how many standard deviations the mean of each feature moved.
        outside: (F,) share of the texts on which each feature is outside its range in training, which holds 99%.
        reward_shift: By how many standard deviations the mean reward moved.
        disagreement: Share of the texts on which the twin contradicts the reward more than on 99% of the training
            responses, both counted in standard deviations; None without a twin.
    """

    texts: int
    shift: np.ndarray
    outside: np.ndarray
    reward_shift: float
    disagreement: float | None

    @property
    def outside_share(self) -> float:
        """Share of all features that are outside their range in training: 1% if nothing drifts."""
        return float(self.outside.mean())

    def alarms(self, threshold: float) -> list[str]:
        """What is larger than a threshold, in words; nothing if all is well."""
        found = []
        if self.outside_share > threshold:
            found.append(f"{100 * self.outside_share:.1f}% of the features are outside their range in training")
        if self.disagreement is not None and self.disagreement > threshold:
            found.append(f"the dense twin contradicts {100 * self.disagreement:.1f}% of the rewards")
        return found

    def flat(self) -> dict[str, float]:
        """The figures as trackers want them."""
        flat = {
            "drift/shift": float(np.sqrt(np.mean(self.shift**2))),
            "drift/outside": self.outside_share,
            "drift/reward_shift": self.reward_shift,
        }
        return flat if self.disagreement is None else flat | {"drift/disagreement": self.disagreement}


@dataclass(frozen=True)
class DriftReference:
    """What the training responses were like.

    Attributes:
        mean: (F,) of each feature.
        std: (F,) standard deviations.
        low: (F,) lower end of the range that holds 99%.
        high: (F,) upper end.
        rewards: (2,) mean and standard deviation.
        twin: (3,) mean, standard deviation, and what 99% of the differences between the two standardised rewards do
            not exceed; empty without a twin.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rewards: np.ndarray
    twin: np.ndarray

    @classmethod
    def of(cls, training: TextReadings) -> DriftReference:
        """Of the training responses."""
        low, high = np.quantile(training.features, [BEYOND / 2, 1 - BEYOND / 2], axis=0)
        rewards, twin = _mean_and_std(training.rewards), np.zeros(0)
        if training.twin is not None:
            of_twin = _mean_and_std(training.twin)
            gaps = np.abs(_standardised(training.rewards, rewards) - _standardised(training.twin, of_twin))
            twin = np.append(of_twin, np.quantile(gaps, 1 - BEYOND))
        return cls(training.features.mean(0), training.features.std(0), low, high, rewards, twin)

    def measure(self, texts: TextReadings) -> Drift:
        """How far other texts are from them."""
        shift = (texts.features.mean(0) - self.mean) / np.where(self.std > 0, self.std, np.inf)
        outside = ((texts.features < self.low) | (texts.features > self.high)).mean(0)
        rewards = _standardised(texts.rewards, self.rewards)
        disagreement = None
        if texts.twin is not None and len(self.twin):
            disagreement = float((np.abs(rewards - _standardised(texts.twin, self.twin)) > self.twin[2]).mean())
        return Drift(len(rewards), shift, outside, float(rewards.mean()), disagreement)

    def save(self, path: Path) -> None:
        """Write it to a file that lies beside the checkpoint."""
        save_file(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> DriftReference:
        """What `save` wrote.

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


def _standardised(x: np.ndarray, mean_and_std: np.ndarray) -> np.ndarray:
    return (x - mean_and_std[0]) / mean_and_std[1]


def find_twin(controls: Sequence[Control]) -> Control | None:
    """The control that is the dense twin, if it is among them."""
    return next((control for control in controls if control.name == TWIN), None)
