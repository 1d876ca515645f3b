"""The pairs of responses that can be labelled, as texts and as representations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..align import read_questions
from ..conversations import Messages, TokenizedPreferences, check_text, list_names, row_name
from ..representations import Representations
from ..runtime import SparseRMError, as_numpy
from ..training import RepresentedTexts, SparseRMTrainer, name_selected
from .label_files import Row
from .learner import Pairs


def pairs_of(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Make a pair of every two different responses to each question.

    Args:
        rows: Rows with a `prompt` or `question`, a string or messages, and `responses`, a list of strings.

    Returns:
        Rows with `prompt`, `chosen` and `rejected` as messages; the choice has no meaning.

    Raises:
        SparseRMError: A row is malformed, or no row has two different responses.

    Example:
        >>> pairs = pairs_of([{"question": "2 + 2?", "responses": ["4", "5", "4"]}])
        >>> [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]
        [('4', '5')]
    """
    found: list[Row] = []
    for number, row in enumerate(rows, 1):
        responses = row.get("responses")
        if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
            raise SparseRMError(
                f"Row {number} has the columns {list_names(row)}; it needs `responses`, a list of strings, or name a "
                "--policy that writes them."
            )
        (prompt,) = read_questions([row])
        texts = [check_text(text, f"{row_name(number)}, a response,") for text in responses]
        for one, other in combinations(dict.fromkeys(text for text in texts if text.strip()), 2):
            found.append({"prompt": prompt, "chosen": _answer(one), "rejected": _answer(other)})
    if not found:
        raise SparseRMError("No question has two different responses to choose from: give questions with more.")
    return found


def _answer(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


@dataclass
class Pool:
    """The pairs that can be labelled.

    Attributes:
        rows: For each of P pairs, its `prompt`, and its first and second response as `chosen` and `rejected`.
        pairs: The pairs as indices of texts.
        texts: The represented texts.
        tokenized: The pairs as token ids.
        representations: The representations from which `texts` was loaded.
        tokenizer: Tokenizer of the base model.
        pooling: Tokens that are pooled, as in `SparseRMConfig`.
    """

    rows: list[Row]
    pairs: Pairs
    texts: RepresentedTexts
    tokenized: TokenizedPreferences
    representations: Representations
    tokenizer: PreTrainedTokenizerBase
    pooling: str
    _names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def represent(cls, rows: Sequence[Row], trainer: SparseRMTrainer) -> Pool:
        """Represent the pairs that a trainer was given as rows; pairs that cannot be trained on are left out."""
        tokenized = trainer.train_pairs
        cached = trainer.represent(tokenized.texts)
        return cls(
            rows=[rows[i] for i in tokenized.rows],
            pairs=Pairs(np.stack([tokenized.chosen, tokenized.rejected], 1), np.array(tokenized.groups)),
            texts=RepresentedTexts.of(cached, as_numpy(trainer.sae.autoencoder.W_dec)),
            tokenized=tokenized,
            representations=cached,
            tokenizer=trainer.processing_class,
            pooling=trainer.args.pooling,
        )

    def names(self, latents: Sequence[int]) -> dict[int, str]:
        """Name latents after the tokens that they fire on in the pool; an unknown name is empty."""
        new = [latent for latent in latents if latent not in self._names]
        if new:
            found = name_selected(new, self.tokenized, self.representations, self.pooling, self.tokenizer)
            self._names |= {latent: name.name if name else "" for latent, name in zip(new, found, strict=True)}
        return {latent: self._names[latent] for latent in latents}
