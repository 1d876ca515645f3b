"""Reward models of other kinds: sequence classifiers of transformers with one label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import check_tokenizer, longest_text
from ..conversations import ChatEncoder, Messages, TokenizedText, row_name
from ..modeling.weights_sparserm import check_index
from ..runtime import SparseRMError, as_numpy, batch_tokens, loading, pad_texts, plan_batches, preferred_dtype

NEEDED = "name a sequence classifier with one label, such as TRL's RewardTrainer writes"


@dataclass(frozen=True)
class ClassifierRewardModel:
    """A reward model that is a sequence classifier with one label, such as TRL's `RewardTrainer` writes.

    The reward is the classifier's logit for the whole conversation, rendered by the classifier's own chat template.

    Attributes:
        model: The classifier.
        tokenizer: Its tokenizer, with a chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls, name: str, device: torch.device, dtype: str = "auto", revision: str | None = None
    ) -> ClassifierRewardModel:
        """Load a classifier, or a LoRA adapter that holds its head; none of its own code is run.

        Args:
            name: Folder or Hub id.
            device: Device to run on.
            dtype: Data type to run in; `auto` takes the type of the saved weights, but float32 for bfloat16 weights on
                hardware that does not multiply bfloat16.
            revision: Revision on the Hub.

        Raises:
            SparseRMError: The classifier cannot be loaded, has no trained head or more than one label, or its
                tokenizer has no chat template.
        """
        with loading(f"The reward model {name!r}"):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
            check_tokenizer(tokenizer)
            check_index(name, {"revision": revision})
            how = {"dtype": dtype, "revision": revision, "use_safetensors": True, "output_loading_info": True}
            model, told = AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=1, ignore_mismatched_sizes=True, trust_remote_code=False, **how
            )
        adapters = getattr(model, "peft_config", {}).values()  # a LoRA adapter that holds the head names it here
        if told["missing_keys"] and not any(adapter.modules_to_save for adapter in adapters):
            lacking = ", ".join(sorted(told["missing_keys"]))
            raise SparseRMError(f"{name!r} is no trained reward model, as its weights lack {lacking}: {NEEDED}.")
        for key in told["mismatched_keys"]:
            weight = key if isinstance(key, str) else key[0]  # transformers 5 adds the shapes
            raise SparseRMError(f"{name!r} is no reward model: its {weight} is not for one label: {NEEDED}.")
        if tokenizer.chat_template is None:
            raise SparseRMError(
                f"The tokenizer of the reward model {name!r} has no chat template: set tokenizer.chat_template and "
                "save the tokenizer."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        if dtype == "auto" and model.dtype == torch.bfloat16:
            model = model.to(preferred_dtype(device))
        return cls(model.to(device).eval(), tokenizer)

    def encoder(self, max_length: int | None = None) -> ChatEncoder:
        """Make the encoder of texts; see `encoder_of`."""
        limit = longest_text(self.model.config, max_length or self.tokenizer.model_max_length)
        encoder = ChatEncoder(self.tokenizer, None, max_length=limit)
        encoder.told_of_plain_text = True  # a classifier always scores the whole text
        return encoder

    def score(self, texts: Sequence[TokenizedText]) -> np.ndarray:
        """Compute the (N,) rewards of N texts from the model's encoder, in batches of similar length."""
        rewards = np.zeros(len(texts))
        with tqdm(total=len(texts), desc="Scoring", unit="text", delay=2) as bar, torch.inference_mode():
            for batch in plan_batches([len(text.ids) for text in texts], batch_tokens(self.model.device)):
                padded, mask = pad_texts([texts[i].ids for i in batch], self.model.device)
                # A classifier finds the last token of a text by its pad tokens.
                padded = padded.masked_fill(mask == 0, self.tokenizer.pad_token_id)
                rewards[batch] = as_numpy(self.model(padded, attention_mask=mask).logits[:, 0])
                bar.update(len(batch))
        return rewards

    def __call__(self, conversations: Sequence[Messages]) -> np.ndarray:
        """Compute the (N,) rewards of N conversations."""
        encoder = self.encoder()
        return self.score([encoder(text, row_name(number)) for number, text in enumerate(conversations, 1)])
