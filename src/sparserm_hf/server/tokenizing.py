"""Tokenise the rows of many callers in turns, in other threads than the event loop and the scoring."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from ..conversations import ChatEncoder
from ..runtime import SparseRMError

T = TypeVar("T")
NamedRow = tuple[str, Mapping[str, Any]]  # name of a row in errors, and the row

TURN = 50_000  # characters that a request tokenises before others have their turn


def count_characters(value: Any, enough: int) -> int:
    """Count the characters of a row, its names included; stop counting at `enough`.

    Example:
        >>> count_characters({"text": "Yes."}, 100)
        8
    """
    found, left = 0, [value]
    while left and found < enough:
        item = left.pop()
        if isinstance(item, str):
            found += len(item)
            continue
        found += 1 if not isinstance(item, Mapping) or not item else 0  # lists and numbers cost time too
        if isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item
    return min(found, enough)


def _encode_each(
    encode: Callable[[ChatEncoder, str, Mapping[str, Any]], T], encoder: ChatEncoder, rows: list[NamedRow]
) -> list[T]:
    return [encode(encoder, where, row) for where, row in rows]


class Tokenizing:
    """Two threads that tokenise: one for rows of ordinary length, one for long rows.

    Requests take turns of `TURN` characters, and a longer row goes to the thread for long rows. So a small request
    never waits until a large request is done. Each thread has its own tokenizer, because a tokenizer refuses two
    threads at once.

    Args:
        encoder: Turns texts into token ids.
        max_characters: Maximum number of characters of a row. A longer row is refused, because cutting a text
            before it is tokenised could change its tokens.
    """

    def __init__(self, encoder: ChatEncoder, max_characters: int):
        self.encoder, self.max_characters = encoder, max_characters
        self._encoders = [encoder, copy.deepcopy(encoder)]
        self._threads = [ThreadPoolExecutor(1, "tokenize"), ThreadPoolExecutor(1, "tokenize-long")]

    async def map(self, encode: Callable[[ChatEncoder, str, Mapping[str, Any]], T], rows: list[NamedRow]) -> list[T]:
        """Apply `encode` to each row, in order; if the caller leaves, the remaining rows are not tokenised.

        Raises:
            SparseRMError: A row is too long, or `encode` raises.
        """
        results: list[T] = []
        loop = asyncio.get_running_loop()
        for turn, is_long in self._turns(rows):
            compute = partial(_encode_each, encode, self._encoders[is_long], turn)
            results += await loop.run_in_executor(self._threads[is_long], compute)
        return results

    def _turns(self, rows: list[NamedRow]) -> Iterator[tuple[list[NamedRow], bool]]:
        """Group consecutive rows that are tokenised at once; yields each group, and True if it is one long row."""
        turn: list[NamedRow] = []
        characters = 0
        for where, row in rows:
            length = count_characters(row, self.max_characters + 1)
            if length > self.max_characters:
                raise SparseRMError(
                    f"{where} has more than {self.max_characters:,} characters, the most that this server takes: cut "
                    "off the start of its text, of which only the last tokens are read."
                )
            if turn and characters + length > TURN:
                yield turn, False
                turn, characters = [], 0
            if length > TURN:
                yield [(where, row)], True
            else:
                turn.append((where, row))
                characters += length
        if turn:
            yield turn, False
