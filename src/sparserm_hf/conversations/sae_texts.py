"""Texts that an SAE is trained on or checked with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..runtime import SparseRMError
from .data_files import iterate_rows, source_name
from .encoding import ChatEncoder
from .row_checks import check_row, row_name
from .row_texts import texts_of_row


def iterate_texts(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int, source: str = ""
) -> Iterator[list[int]]:
    """Yield the token ids of the texts in some rows.

    A long plain text is cut into several pieces, each with the tokenizer's BOS token; a long conversation loses its
    end.

    Args:
        rows: Rows of any form, see `texts_of_row`. A string `prompt` with a string `completion` is rendered by the
            chat template, as a question with its answer.
        tokenizer: A tokenizer with a chat template, see `prepare_tokenizer`.
        max_length: Largest number of tokens of a piece.
        source: Name of the file that holds the rows, for errors.

    Raises:
        SparseRMError: A row has none of the forms that `texts_of_row` takes.
    """
    encoder = ChatEncoder(tokenizer, None)  # an SAE needs no response, so its place is not looked for
    encoder.told_of_plain_text = True
    for number, row in enumerate(rows, 1):
        check_row(row, where := row_name(number, source))
        if "completion" in row and isinstance(row.get("prompt"), str) and isinstance(row["completion"], str):
            contents = {"user": row["prompt"], "assistant": row["completion"]}
            row = {"messages": [{"role": role, "content": content} for role, content in contents.items()]}
        for text in texts_of_row(row, where, needs_response=False).values():
            if isinstance(text, str) and not text.strip():
                continue
            ids = list(encoder.encode(text, where).ids)
            head = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
            yield ids[:max_length]
            if isinstance(text, str):
                room = max_length - len(head)
                for start in range(max_length, len(ids) - 1, room):  # a last piece of one token is dropped
                    yield head + ids[start : start + room]


def load_texts(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    max_length: int,
    split: str = "train",
    config: str | None = None,
) -> list[list[int]]:
    """Load the first texts of a file or dataset as token ids, until there are `max_tokens` tokens.

    Args:
        source: See `iterate_rows`.
        tokenizer: See `iterate_texts`.
        max_tokens: Number of tokens; the last text may exceed it.
        max_length: Largest number of tokens of a text; a longer plain text is cut into several.
        split: See `iterate_rows`.
        config: See `iterate_rows`.

    Raises:
        SparseRMError: The source cannot be read, a row has none of the known forms, or there is no text.
    """
    texts, total = [], 0
    rows = iterate_rows(source, split, config)
    with tqdm(desc="Tokenising", unit="token", unit_scale=True, total=max_tokens, delay=2) as bar:
        for text in iterate_texts(rows, tokenizer, max_length, source_name(source, split)):
            if len(text) < 2:  # nothing but a begin-of-text token
                continue
            texts.append(text)
            total += len(text)
            bar.update(len(text))
            if total >= max_tokens:
                break
    if not texts:
        raise SparseRMError(f"There is no text in {source}: give rows with texts of at least two tokens.")
    return texts
