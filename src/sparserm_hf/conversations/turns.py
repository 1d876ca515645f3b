"""Split the token ids of a conversation into turns, to show them to a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling.response_sparserm import occurrences


@dataclass(frozen=True)
class Turn:
    """A turn of one role.

    Attributes:
        role: `system`, `user`, `assistant`, `tool` or the like; `opening` for a text that begins without a header.
        content: Text of the turn, without the chat template's tokens.
    """

    role: str
    content: str


def find_turns(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, marks: dict[str, Any] | None) -> list[Turn]:
    """Split token ids into turns, at the headers of the chat template; empty turns are left out.

    Args:
        ids: Token ids of a rendered conversation, or of its beginning.
        tokenizer: The reward model's tokenizer.
        marks: `SparseRMConfig.response_marks`; None for a checkpoint of version 0.1: the whole text is then one turn.
    """

    def decode(start: int, stop: int) -> str:
        return str(tokenizer.decode(list(ids[start:stop]), skip_special_tokens=True)).strip()

    headers: dict[int, tuple[int, str]] = {}  # the end and the role of each header, by its start
    for kind in ("other_headers", "assistant_header"):
        for start, stop in occurrences(ids, marks[kind] if marks else [], 0, len(ids)):
            role = decode(start, stop).casefold()
            named = role if role.isalpha() else "user"
            if stop > headers.get(start, (0, ""))[0]:
                headers[start] = (stop, "assistant" if kind == "assistant_header" else named)
    starts = sorted(headers)
    opening = decode(0, starts[0] if starts else len(ids))
    role, content = "opening", opening
    if opening.casefold().startswith("system"):
        role, content = "system", opening[len("system") :].strip()
    turns = [Turn(role, content)]
    for start, following in zip(starts, [*starts[1:], len(ids)], strict=False):
        stop, role = headers[start]
        turns.append(Turn(role, decode(stop, following)))
    return [turn for turn in turns if turn.content]
