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
            SparseRMError: The reward model cannot be loaded, or was saved without its drift reference.
        """
        return cls(SavedRewardModel.load(name, revision=revision), load_reference(name, revision))

    @property
    def fingerprint(self) -> list[Any]:
        """Fingerprint of the head, and the steering: they differ if the folder now holds another reward model."""
        config = self.saved.model.config
        steering = {str(latent): factor for latent, factor in config.steering.items()}
        return [fingerprint_module(self.saved.model.score), steering]

    def score(self, texts: Sequence[Messages]) -> ScoredResponses:
        """Score conversations by the reward model and its dense control; the last result is cached."""
        if not self._last or self._last[0] != texts:
            encoder = encoder_of(self.saved.model, self.saved.tokenizer)
            encoded = [encoder(text, row_name(number)) for number, text in enumerate(texts, 1)]
            self._last[:] = [texts, score_for_drift(self.saved.model, self.saved.controls, encoded)]
        return self._last[1]

    def __call__(self, texts: Sequence[Messages]) -> np.ndarray:
        """Compute the rewards of conversations, (N,), with the model's steering."""
        scored, model = self.score(texts), self.saved.model
        if not model.config.steering:
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
            raise SparseRMError(f"{name!r} was trained without its dense control: train it anew with --controls true.")

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
        """Load a classifier from a folder or the Hub, or a LoRA adapter with its base.

        Raises:
            SparseRMError: The classifier cannot be loaded or has no trained head, or its tokenizer has no chat
                template.
        """
        with loading(f"The reward model {name!r}"):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            check_tokenizer(tokenizer)
            check_index(name, {})
            how = {"num_labels": 1, "dtype": "auto", "output_loading_info": True, "use_safetensors": True}
            model, told = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=False, **how)
        adapters = getattr(model, "peft_config", {}).values()  # a LoRA adapter that holds the head names it here
        if told["missing_keys"] and not any(adapter.modules_to_save for adapter in adapters):
            raise SparseRMError(
                f"{name!r} is no trained reward model, as its weights lack {', '.join(sorted(told['missing_keys']))}: "
                "train it first, for example by TRL's RewardTrainer."
            )
        if tokenizer.chat_template is None:
            raise SparseRMError(
                f"The tokenizer of the reward model {name!r} has no chat template: set tokenizer.chat_template and "
                "save the tokenizer."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.to(device).eval(), tokenizer)

    def __call__(self, texts: Sequence[Messages]) -> np.ndarray:
        """Compute the rewards of conversations, (N,)."""
        encoder = ChatEncoder(self.tokenizer, None, max_length=self.tokenizer.model_max_length)
        ids = [encoder(text, row_name(number)).ids for number, text in enumerate(texts, 1)]
        rewards = np.zeros(len(ids))
        with tqdm(total=len(ids), desc="Scoring", unit="text", delay=2) as bar, torch.inference_mode():
            for batch in plan_batches([len(text) for text in ids], batch_tokens(self.model.device)):
                padded, mask = pad_texts([ids[i] for i in batch], self.model.device)
                # A classifier finds the last token of a text by its pad tokens.
                padded = padded.masked_fill(mask == 0, self.tokenizer.pad_token_id)
                logits = self.model(padded, attention_mask=mask).logits
                rewards[batch] = as_numpy(logits[:, 0])
                bar.update(len(batch))
        return rewards
