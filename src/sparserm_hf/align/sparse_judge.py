"""The judge of responses: a SparseRM reward model with its dense control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..base_models import fingerprint_module
from ..conversations import Messages, row_name
from ..evaluation import DriftReference, SavedRewardModel, find_twin
from ..monitoring import Drift, ScoredResponses, load_reference, measure_drift, score_for_drift
from ..runtime import SparseRMError, as_numpy, exact
from ..scoring import encoder_of


@dataclass(frozen=True)
class SparseJudge:
    """A SparseRM reward model that judges responses.

    Attributes:
        saved: The reward model with its controls.
        reference: Statistics of its training responses, from which drift is measured.
    """

    saved: SavedRewardModel
    reference: DriftReference
    _last: list[Any] = field(default_factory=list)  # the last conversations and their scores

    @classmethod
    def load(cls, name: str, revision: str | None = None) -> SparseJudge:
        """Load a reward model.

        Raises:
            SparseRMError: The reward model cannot be loaded, was saved without its drift reference, or is steered and
                has a gate.
        """
        saved = SavedRewardModel.load(name, revision=revision)
        if saved.model.config.gate and saved.model.config.steering:
            raise SparseRMError(f"{name!r} has a gate and steered latents, which alignment cannot use together.")
        return cls(saved, load_reference(name, revision))

    @property
    def fingerprint(self) -> list[Any]:
        """Fingerprint of head, steering and pessimism, which changes if the folder holds another reward model."""
        config = self.saved.model.config
        steering = {str(latent): factor for latent, factor in config.steering.items()}
        # Without pessimism there is no entry, as in version 0.5, so that a run of that version can be continued.
        pessimism = [config.pessimism] if config.pessimism else []
        return [fingerprint_module(self.saved.model.score), steering, *pessimism]

    def score(self, texts: Sequence[Messages]) -> ScoredResponses:
        """Score conversations by the reward model and its dense control; the last result is cached."""
        if not self._last or self._last[0] != texts:
            encoder = encoder_of(self.saved.model, self.saved.tokenizer)
            encoded = [encoder(text, row_name(number)) for number, text in enumerate(texts, 1)]
            self._last[:] = [texts, score_for_drift(self.saved.model, self.saved.controls, encoded)]
        return self._last[1]

    def __call__(self, texts: Sequence[Messages]) -> np.ndarray:
        """Compute the rewards of conversations, (N,), with the model's steering and pessimism."""
        scored, model = self.score(texts), self.saved.model
        if not model.config.steering and not model.config.pessimism:
            return scored.rewards
        mean, factors = exact(model.feature_mean), exact(model.steering_factors())
        steered = mean + factors * (torch.from_numpy(scored.features) - mean)
        with torch.inference_mode():
            return as_numpy(model.reward(steered.to(model.feature_mean))[:, 0])

    def dense(self, texts: Sequence[Messages]) -> np.ndarray:
        """Compute the rewards of conversations, (N,), by the control whose head reads the whole representation."""
        twin = self.score(texts).twin
        assert twin is not None  # see check_controls
        return twin

    def check_controls(self, name: str) -> None:
        """Raise a `SparseRMError` unless the dense control was saved beside the reward model."""
        if find_twin(self.saved.controls) is None:
            raise SparseRMError(
                f"{name!r} has no dense control: train it anew, without --no_controls and without --adapter_rank. A "
                "combined model has none."
            )

    def drift(self, texts: Sequence[Messages]) -> Drift:
        """Measure how far conversations are from the reward model's training responses."""
        return measure_drift(self.reference, self.score(texts))
