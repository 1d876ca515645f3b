"""Preference pairs: checked, put through the chat template, tokenised."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import SparseRMError
from .files import FORMATS, FORMS
from .templates import Text, common_prefix_length, encode, join, truncate


@dataclass(frozen=True)
class TokenizedPreferences:
    """Preference pairs as token ids; pair i is `texts[chosen[i]]` against `texts[rejected[i]]`.

    Attributes:
        texts: Token ids of each distinct text.
        chosen: Index of each pair's chosen text.
        rejected: Index of each pair's rejected text.
        margins: How much better each chosen response is at least; 0 where the data does not say.
        groups: For each pair, the number of its prompt: pairs of one prompt must not be split between training and
            validation.
        left_out: How many pairs were left out, by reason.
        truncated: How many pairs lost the start of their prompt.
    """

    texts: list[list[int]]
    chosen: list[int]
    rejected: list[int]
    margins: list[float]
    groups: list[int]
    left_out: dict[str, int]
    truncated: int

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return np.array([len(text) for text in self.texts])

    def summary(self) -> str:
        """One line: how many pairs, and what happened to the rest."""
        parts = [f"{len(self)} pairs, {len(self.texts)} distinct texts"]
        parts += [f"{count} left out ({reason})" for reason, count in sorted(self.left_out.items())]
        if self.truncated:
            parts.append(f"{self.truncated} lost the start of their prompt")
        return "; ".join(parts)


def check_columns(columns: Iterable[str]) -> None:
    """Raise a `SparseRMError` unless the columns hold preference pairs."""
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise SparseRMError(
            f"The column {missing[0]!r} is missing; the columns are {', '.join(columns) or 'none'}. {FORMATS}"
        )


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )


def check_form(texts: Mapping[str, Any], number: int) -> None:
    """Raise a `SparseRMError` unless the values are all strings or all messages.

    Args:
        texts: Values by column.
        number: Of the row, from 1.
    """
    values = texts.values()
    if not all(isinstance(text, str) for text in values) and not all(_is_messages(text) for text in values):
        kinds = ", ".join(f"{name} is {type(text).__name__}" for name, text in texts.items())
        raise SparseRMError(f"Row {number} is of another form: {kinds}. {FORMS}")


def split_prompt(row: Mapping[str, Any], number: int) -> tuple[Text, Text, Text]:
    """Check a row and return its prompt, chosen and rejected response.

    Where the prompt is implicit it is what chosen and rejected begin with: messages in common, or characters.

    Args:
        row: A row in one of TRL's preference formats.
        number: Its number, from 1, for the error.

    Raises:
        SparseRMError: A value is missing or of another form.
    """
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if chosen is None or rejected is None:
        raise SparseRMError(f"Row {number} has no {'chosen' if chosen is None else 'rejected'} response. {FORMATS}")
    given = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    check_form({name: text for name, text in given.items() if text is not None}, number)
    if prompt is None:
        length = common_prefix_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    return prompt, chosen, rejected


def _margin(row: Mapping[str, Any], number: int) -> float:
    margin = row.get("margin")
    try:
        value = 0.0 if margin is None else float(margin)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise SparseRMError(f"Row {number} has the margin {margin!r}, but a margin must be a number.")
    return value


def _is_empty(response: Text) -> bool:
    return not any((part if isinstance(part, str) else part["content"]).strip() for part in response)


def tokenize_preferences(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenizedPreferences:
    """Check and tokenise preference pairs in any of TRL's formats.

    Left out and counted: pairs with an empty response, with twice the same text, or with a response longer than
    `max_length`. Longer pairs lose the start of their prompt, never the response.

    Args:
        rows: A `datasets.Dataset` or any iterable of rows.
        tokenizer: With a chat template, see `prepare_tokenizer`.
        max_length: Most tokens a text may have.

    Raises:
        SparseRMError: A row is of another form, or no pair is left.
    """
    index: dict[tuple[int, ...], int] = {}
    prompts: dict[str, int] = {}
    pairs: list[tuple[int, int, float, int]] = []
    left_out: Counter[str] = Counter()
    truncated = 0
    number = 0
    for number, row in enumerate(tqdm(rows, desc="Tokenising", unit="pair", delay=2), 1):
        if number == 1:
            check_columns(list(row))
        prompt, *responses = split_prompt(row, number)
        ids = [encode(tokenizer, join(prompt, response)) for response in responses]
        if ids[0] == ids[1]:
            left_out["chosen and rejected are identical"] += 1
            continue
        if any(map(_is_empty, responses)):
            left_out["empty response"] += 1
            continue
        if max(map(len, ids)) > max_length:
            prompt_ids = encode(tokenizer, prompt, add_generation_prompt=True)
            bos = tokenizer.bos_token_id
            shorter = [truncate(x, common_prefix_length(prompt_ids, x), max_length, bos) for x in ids]
            if shorter[0] is None or shorter[1] is None:
                left_out[f"response longer than max_length = {max_length}"] += 1
                continue
            truncated += 1
            ids = [shorter[0], shorter[1]]
        chosen, rejected = (index.setdefault(tuple(x), len(index)) for x in ids)
        group = prompts.setdefault(json.dumps(prompt), len(prompts))
        pairs.append((chosen, rejected, _margin(row, number), group))
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise SparseRMError(f"No usable pair in {number} rows{f' ({reasons})' if reasons else ''}. {FORMATS}")
    return TokenizedPreferences(
        texts=[list(text) for text in index],
        chosen=[pair[0] for pair in pairs],
        rejected=[pair[1] for pair in pairs],
        margins=[pair[2] for pair in pairs],
        groups=[pair[3] for pair in pairs],
        left_out=dict(left_out),
        truncated=truncated,
    )
