"""Turn rows of preference pairs into token ids, and leave out pairs that cannot be used.

`preferences.py` splits a single row into its prompt and responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..runtime import SparseRMError, common_prefix_length
from .data_files import check_dataset
from .data_sources import DataSource
from .encoding import ChatEncoder, TokenizedText
from .pair_groups import group_pairs, prompt_key
from .preferences import FORMATS, Preference, check_columns, parse_preference
from .row_checks import check_row, row_name

# Reasons to leave a pair out.
IDENTICAL, EMPTY = "chosen and rejected are identical", "empty response"
LONG = "response longer than max_length = {}"


@dataclass(frozen=True)
class TokenizedPreferences:
    """Preference pairs as token ids; pair i is `texts[chosen[i]]` against `texts[rejected[i]]`.

    Attributes:
        texts: Each distinct text.
        chosen: Index of each pair's chosen text.
        rejected: Index of each pair's rejected text.
        margins: For each pair, the smallest difference between its rewards that training aims for, from the `margin`
            column; 0 without this column.
        groups: For each pair, the number of its group. Pairs with the same prompt, or with a text in common, are in
            one group, which must not be split between training and validation.
        left_out: Number of pairs that were left out, by reason.
        truncated: Number of pairs that lost the start of their prompt.
        rows: Index of each pair's row in the data; rows that were left out are not among them.
        source: Name of the dataset that the pairs come from.
    """

    texts: list[TokenizedText]
    chosen: list[int]
    rejected: list[int]
    margins: list[float]
    groups: list[int]
    left_out: dict[str, int]
    truncated: int
    rows: list[int]
    source: DataSource = field(default_factory=DataSource)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text."""
        return np.array([len(text.ids) for text in self.texts])

    def summary(self) -> str:
        """Summarise in one line how many pairs were kept, left out and shortened."""
        parts = [f"{len(self)} pairs, {len(self.texts)} distinct texts"]
        parts += [f"{count} left out ({reason})" for reason, count in sorted(self.left_out.items())]
        if self.truncated:
            parts.append(f"{self.truncated} lost the start of their prompt")
        return "; ".join(parts)


def _shorten(pair: Preference, texts: list[TokenizedText], encoder: ChatEncoder) -> list[TokenizedText]:
    """Cut the start of the prompt from texts that are too long; an empty list if a response alone is too long."""
    bos, limit = encoder.tokenizer.bos_token_id, encoder.max_length
    prompt: tuple[int, ...] = ()
    if isinstance(pair.prompt, str) and pair.prompt.strip() and not texts[0].turn:
        prompt = encoder.encode(pair.prompt, pair.where).ids
    for text in texts:
        own = text.stop - (text.turn or common_prefix_length(prompt, text.ids))
        if text.stop > limit and own > limit - (text.ids[0] == bos):
            return []
    return [text.keep_end(limit, bos) for text in texts]


def tokenize_preferences(
    rows: Iterable[Mapping[str, Any]], encoder: ChatEncoder, numbers: Iterable[int] | None = None
) -> TokenizedPreferences:
    """Check and tokenise preference pairs in any of TRL's formats.

    Pairs with an empty response, with two equal texts, or with a response longer than `encoder.max_length` are left
    out and counted. A longer pair loses the start of its prompt, never the response.

    Args:
        rows: A `datasets.Dataset` or any iterable of rows.
        encoder: Encoder of the reward model.
        numbers: Number of each row in the data; by default they are counted from 1.

    Raises:
        SparseRMError: A row is not a preference pair, or no pair is usable.
    """
    check_dataset(rows)
    source = getattr(getattr(rows, "info", None), "dataset_name", None) or ""
    index: dict[TokenizedText, int] = {}
    pairs: list[tuple[Hashable, tuple[int, int], float]] = []
    indices: list[int] = []
    left_out: Counter[str] = Counter()
    truncated = 0
    for row, number in zip(tqdm(rows, desc="Tokenising", unit="pair", delay=2), numbers or count(1), strict=False):
        check_row(row, where := row_name(number, source))
        if not indices and not left_out:
            check_columns(list(row))
        pair = parse_preference(row, where)
        found = _tokenize_pair(pair, encoder, where)
        if isinstance(found, str):
            left_out[found] += 1
            continue
        truncated += found.is_long
        chosen, rejected = (index.setdefault(text, len(index)) for text in found.texts)
        pairs.append((found.prompt, (chosen, rejected), pair.margin))
        indices.append(number - 1)
    if not pairs:
        raise _no_usable_pair(left_out)
    sides = [both for _, both, _ in pairs]
    return TokenizedPreferences(
        texts=list(index),
        chosen=[chosen for chosen, _ in sides],
        rejected=[rejected for _, rejected in sides],
        margins=[margin for _, _, margin in pairs],
        groups=group_pairs([prompt for prompt, _, _ in pairs], sides),
        left_out=dict(left_out),
        truncated=truncated,
        rows=indices,
        source=DataSource.of(rows),
    )


def _no_usable_pair(left_out: Counter[str]) -> SparseRMError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    rows = f"{left_out.total()} rows{f' ({reasons})' if reasons else ''}"
    return SparseRMError(f"No usable pair in {rows}. {FORMATS}")


class _TokenizedPair(NamedTuple):
    texts: list[TokenizedText]  # chosen, rejected
    prompt: Hashable
    is_long: bool


def _tokenize_pair(pair: Preference, encoder: ChatEncoder, where: str) -> _TokenizedPair | str:
    """Tokenise a pair; for a pair that is not usable, return the reason."""
    if pair.is_empty("chosen") or pair.is_empty("rejected"):
        return IDENTICAL if pair.chosen == pair.rejected else EMPTY
    texts = [encoder.encode(pair.text(side), where) for side in ("chosen", "rejected")]
    if texts[0].ids == texts[1].ids:
        return IDENTICAL
    if any(text.start == text.stop for text in texts):  # the template leaves the response out
        return EMPTY
    prompt = prompt_key(pair, texts, encoder)
    is_long = max(text.stop for text in texts) > encoder.max_length
    texts = _shorten(pair, texts, encoder)
    return _TokenizedPair(texts, prompt, is_long) if texts else LONG.format(encoder.max_length)
