"""Judges of responses: SparseRM, its dense control, and other reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import check_tokenizer, fingerprint_module
from ..conversations import ChatEncoder, Messages, row_name
from ..evaluation import DriftReference, SavedRewardModel, find_twin
from ..modeling.weights_sparserm import check_index
from ..monitoring import Drift, ScoredResponses, load_reference, measure_drift, score_for_drift
from ..runtime import SparseRMError, as_numpy, batch_tokens, exact, loading, pad_texts, plan_batches
from ..scoring import encoder_of


@dataclass(frozen=True)
class SparseJudge:
    """A SparseRM reward model.

    Attributes:
        saved: With its controls.
        reference: What its training responses were like.
    """

    saved: SavedRewardModel
    reference: DriftReference
    _last: list[Any] = field(default_factory=list)  # conversations and what was made of them

    @classmethod
    def load(cls, name: str, revision: str | None = None) -> SparseJudge:
        """Load a reward model.

        Raises:
            SparseRMError: It cannot be loaded, or was saved without what drift is measured by.
        """
        return cls(SavedRewardModel.load(name, revision=revision), load_reference(name, revision))

    @property
    def fingerprint(self) -> list[Any]:
        """The head and the steering, by which one reward model is told from another in the same folder."""
        config = self.saved.model.config
        steering = {str(latent): factor for latent, factor in config.steering.items()}
        return [fingerprint_module(self.saved.model.score), steering]

    def score(self, texts: Sequence[Messages]) -> ScoredResponses:
        """Score conversations by the reward model and its dense twin; the last answer is remembered."""
        if not self._last or self._last[0] != texts:
            encoder = encoder_of(self.saved.model, self.saved.tokenizer)
            encoded = [encoder(text, row_name(number)) for number, text in enumerate(texts, 1)]
            self._last[:] = [texts, score_for_drift(self.saved.model, self.saved.controls, encoded)]
        return self._last[1]

    def __call__(self, texts: Sequence[Messages]) -> np.ndarray:
        """(N,) rewards of conversations, steered where the model is."""
        scored, model = self.score(texts), self.saved.model
        if not model.config.steering:
            return scored.rewards
        mean, factors = exact(model.feature_mean), exact(model.steering_factors())
        steered = mean + factors * (torch.from_numpy(scored.features) - mean)
        with torch.inference_mode():
            return as_numpy(model.reward(steered.to(model.feature_mean))[:, 0])

    def dense(self, texts: Sequence[Messages]) -> np.ndarray:
        """(N,) rewards of conversations by the control that reads the whole representation."""
        twin = self.score(texts).twin
        assert twin is not None  # see check_controls
        return twin

    def check_controls(self, name: str) -> None:
        """Raise a `SparseRMError` unless the dense control was saved beside the reward model."""
        if find_twin(self.saved.controls) is None:
            raise SparseRMError(f"{name!r} was trained without its dense control: train it with --controls true.")

    def drift(self, texts: Sequence[Messages]) -> Drift:
        """Measure how far conversations are from the reward model's training responses."""
        return measure_drift(self.reference, self.score(texts))


@dataclass(frozen=True)
class ClassifierJudge:
    """A reward model that is a sequence classifier with one label, such as TRL's `RewardTrainer` makes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, name: str, device: torch.device) -> ClassifierJudge:
        """Load a folder or Hub id, a LoRA adapter's too.

        Raises:
            SparseRMError: It cannot be loaded, has no trained head, or its tokenizer no chat template.
        """
        with loading(f"The reward model {name!r}"):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            check_tokenizer(tokenizer)
            check_index(name, {})
            how = {"num_labels": 1, "dtype": "auto", "output_loading_info": True, "use_safetensors": True}
            model, told = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=False, **how)
        adapters = getattr(model, "peft_config", {}).values()  # that of a LoRA run has the head with it
        if told["missing_keys"] and not any(adapter.modules_to_save for adapter in adapters):
            raise SparseRMError(
                f"{name!r} is no trained reward model: its weights lack {', '.join(sorted(told['missing_keys']))}."
            )
        if tokenizer.chat_template is None:
            raise SparseRMError(f"The tokenizer of the reward model {name!r} has no chat template: set one, save it.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.to(device).eval(), tokenizer)

    def __call__(self, texts: Sequence[Messages]) -> np.ndarray:
        """(N,) rewards of conversations."""
        encoder = ChatEncoder(self.tokenizer, None, max_length=self.tokenizer.model_max_length)
        ids = [encoder(text, row_name(number)).ids for number, text in enumerate(texts, 1)]
        rewards = np.zeros(len(ids))
        with tqdm(total=len(ids), desc="Scoring", unit="text", delay=2) as bar, torch.inference_mode():
            for batch in plan_batches([len(text) for text in ids], batch_tokens(self.model.device)):
                padded, mask = pad_texts([ids[i] for i in batch], self.model.device)
                padded = padded.masked_fill(mask == 0, self.tokenizer.pad_token_id)  # its last token is found by it
                logits = self.model(padded, attention_mask=mask).logits
                rewards[batch] = as_numpy(logits[:, 0])
                bar.update(len(batch))
        return rewards
