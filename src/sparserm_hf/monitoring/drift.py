"""Drift: the distance of a policy's responses from the training responses of its reward model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..conversations import row_name, texts_of_row
from ..evaluation import REFERENCE_FILE, DriftReference, SavedRewardModel
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import SparseRMError, find_file
from ..scoring import check_reward_model
from .scored_responses import ScoredResponses, score_for_drift

ALARM = 0.03  # an alarm is raised above this share of features outside their range, or of rewards the twin contradicts


@dataclass(frozen=True, repr=False)
class Drift:
    """The distance of N responses from the training responses, over F features.

    Attributes:
        responses: Number of responses, N.
        shift: (F,) shift of each feature's mean, in standard deviations of training.
        outside: (F,) share of the responses whose feature is outside the range that holds 99% in training.
        reward_shift: Shift of the mean reward, in standard deviations of training.
        disagreement: Share of the rewards that the dense twin contradicts more than it contradicts 99% of the
            training rewards; None without a twin.
        latents: Names of the latents by id, in the order of the features; empty if they are not known.

    Example:
        >>> Drift(200, shift=np.array([0.1, -2.0]), outside=np.array([0.01, 0.35]), reward_shift=0.8, disagreement=0.0)
        Drift of 200 responses: 18.0% of the features outside their range in training, reward +0.80 standard deviations
    """

    responses: int
    shift: np.ndarray
    outside: np.ndarray
    reward_shift: float
    disagreement: float | None
    latents: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Drift of {self.responses} responses: {100 * self.outside_share:.1f}% of the features outside their "
            f"range in training, reward {self.reward_shift:+.2f} standard deviations"
        )

    @property
    def outside_share(self) -> float:
        """Share of all feature values outside their range in training: 1% without drift."""
        return float(self.outside.mean())

    def alarms(self, threshold: float = ALARM) -> list[str]:
        """Describe each share above a threshold in words; empty without drift."""
        found = []
        if self.outside_share > threshold:
            found.append(f"{100 * self.outside_share:.1f}% of the features are outside their range in training")
        if self.disagreement is not None and self.disagreement > threshold:
            found.append(f"the dense twin contradicts {100 * self.disagreement:.1f}% of the rewards")
        return found

    def flat(self) -> dict[str, float]:
        """Flatten the figures into one dictionary for trackers."""
        flat = {
            "drift/shift": float(np.sqrt(np.mean(self.shift**2))),
            "drift/outside": self.outside_share,
            "drift/reward_shift": self.reward_shift,
        }
        return flat if self.disagreement is None else flat | {"drift/disagreement": self.disagreement}


def measure_drift(reference: DriftReference, scored: ScoredResponses) -> Drift:
    """Measure the distance of scored responses from the training responses.

    Args:
        reference: Statistics of the training responses.
        scored: N responses.
    """
    shift = (scored.features.mean(0) - reference.mean) / np.where(reference.std > 0, reference.std, np.inf)
    outside = ((scored.features < reference.low) | (scored.features > reference.high)).mean(0)
    disagreement = None
    if scored.twin is not None and len(reference.twin):
        disagreement = float(reference.disagreements(scored.rewards, scored.twin).mean())
    reward_shift = float(reference.standardise(scored.rewards).mean())
    return Drift(len(scored.rewards), shift, outside, reward_shift, disagreement)


def load_reference(name: str, revision: str | None = None) -> DriftReference:
    """Load the drift reference of a checkpoint.

    Args:
        name: Folder or Hub id of the reward model.
        revision: Revision of the reward model on the Hub.

    Raises:
        SparseRMError: There is no reward model, it has no drift reference, or the file is broken.
    """
    check_reward_model(name, revision)
    file = find_file(name, REFERENCE_FILE, revision)
    if file is None:
        raise SparseRMError(
            f"{name!r} holds no {REFERENCE_FILE}, which says what its training responses were like: train it anew, or "
            "combine it anew with --dataset."
        )
    return DriftReference.load(file)


def _check_features(reference: DriftReference, config: SparseRMConfig) -> None:
    """Raise a `SparseRMError` unless a reference has as many features as the reward model."""
    if len(reference.mean) != len(config.latents):
        raise SparseRMError(
            f"{REFERENCE_FILE} has {len(reference.mean)} features, but the reward model has "
            f"{len(config.latents)}: it belongs to another reward model. Train this one anew."
        )


def monitor(
    model: str,
    rows: Iterable[Mapping[str, Any]],
    source: str = "",
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
) -> Drift:
    """Measure how far a policy's responses are from the training responses of a reward model.

    Args:
        model: Folder or Hub id of the reward model.
        rows: Rows as `texts_of_row` takes them.
        source: Name of the file that the rows come from, for errors.
        max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        dtype: Data type of the base model; `auto` takes the type that training ran in.
        revision: Revision of the reward model on the Hub.

    Raises:
        SparseRMError: The model cannot be loaded, has no drift reference, or a row is unusable.

    Example:
        ```python
        from sparserm_hf import monitor

        drift = monitor("my-reward-model", [{"prompt": "What is 2 + 2?", "completion": "4."}])
        print(drift, drift.alarms())
        ```
    """
    reference = load_reference(model, revision)
    saved = SavedRewardModel.load(model, dtype, revision)
    _check_features(reference, saved.model.config)
    encoder = saved.encoder(max_length)
    named = ((row_name(number, source), row) for number, row in enumerate(rows, 1))
    texts = [encoder(text, where) for where, row in named for text in texts_of_row(row, where).values()]
    if not texts:
        raise SparseRMError(f"There is no response in {source or 'the rows'}.")
    drift = measure_drift(reference, score_for_drift(saved.model, saved.controls, texts))
    config = saved.model.config
    return replace(drift, latents={latent.id: latent.title for latent in config.latents})
