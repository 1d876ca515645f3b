"""Preference pairs: split a row with `chosen` and `rejected` into its prompt and two responses.

`implicit_prompts.py` finds the prompt that two responses begin with. `row_texts.py` finds the texts in rows of any
form. `tokenized_preferences.py` turns pairs into token ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime import SparseRMError, shown
from .implicit_prompts import implicit_prompt, repeats
from .messages import Messages, Text, as_conversation, check_texts, is_messages
from .row_checks import check_row, list_names

FORMATS = (
    "Each row needs `chosen` and `rejected`, and may have a `prompt` and a number `margin`: all of them strings, or "
    "all lists of {'role', 'content'}."
)


@dataclass(frozen=True)
class Preference:
    """A prompt with two responses to it.

    Attributes:
        prompt: A string, or messages; empty if there is no prompt.
        chosen: The better response, in the same form.
        rejected: The worse response, in the same form.
        row: The row that holds the pair; its tools belong to both responses.
        where: Name of the row in errors.
    """

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    row: Mapping[str, Any]
    where: str

    @property
    def joined(self) -> tuple[str | Messages, str | Messages]:
        """The prompt with the chosen response, and the prompt with the rejected response."""
        return self.prompt + self.chosen, self.prompt + self.rejected  # type: ignore[operator]

    def text(self, side: str) -> Text:
        """Join the prompt and the response of one side, `chosen` or `rejected`.

        Raises:
            SparseRMError: The response is a list of messages that does not end with the assistant's.
        """
        whole = self.joined[("chosen", "rejected").index(side)]
        return whole if isinstance(whole, str) else as_conversation(whole, self.row, self.where, side)

    @property
    def margin(self) -> float:
        """The smallest difference between the two rewards that training aims for: the row's `margin`, or else 0.

        Raises:
            SparseRMError: The row's `margin` is no number.
        """
        given = self.row.get("margin")
        try:
            margin = 0.0 if given is None or given == "" else float(given)
        except (TypeError, ValueError, OverflowError):
            margin = math.nan
        if not math.isfinite(margin):
            raise SparseRMError(f"{self.where}, `margin` is {shown(given)}, but must be a number.")
        return margin

    def is_empty(self, side: str) -> bool:
        """Tell if the response of one side is empty."""
        response = getattr(self, side)
        if isinstance(response, str):
            return not response.strip()
        return not any(m["content"].strip() or m.get("tool_calls") or m.get("reasoning_content") for m in response)


def check_columns(columns: Iterable[str]) -> None:
    """Raise a `SparseRMError` unless the columns hold preference pairs."""
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise SparseRMError(f"The column `{missing[0]}` is missing; the columns are {list_names(columns)}. {FORMATS}")


def parse_preference(row: Mapping[str, Any], where: str) -> Preference:
    """Check a preference pair, and split the prompt from the responses.

    If `chosen` and `rejected` repeat the prompt, it is removed from them. If the row has no `prompt`, the prompt is
    the common start of both. In messages it ends with a whole message. In strings it ends where the last answer of a
    dialogue begins, or else at the start of a word. Neither response becomes empty.

    Args:
        row: A row in one of TRL's preference formats.
        where: Name of the row in errors, see `row_name`.

    Raises:
        SparseRMError: A field is missing, or is neither a string nor messages.
    """
    check_row(row, where)
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise SparseRMError(f"{where} has no `{name}` response. {FORMATS}")
    prompt = row.get("prompt")
    if isinstance(prompt, str) and is_messages(row["chosen"]):  # UltraFeedback's `prompt` is the first question
        sides = [side for side in (row["chosen"], row["rejected"]) if is_messages(side)]
        whole = all(any(message.get("role") == "user" for message in side) for side in sides)
        prompt = None if whole else [{"role": "user", "content": prompt}]
    names = [name for name in ("prompt", "chosen", "rejected") if name != "prompt" or prompt is not None]
    found = check_texts({**row, "prompt": prompt}, names, where)
    chosen, rejected = found["chosen"], found["rejected"]
    if prompt is None:
        shared: str | Messages = chosen[: implicit_prompt(chosen, rejected)]
        return Preference(shared, chosen[len(shared) :], rejected[len(shared) :], row, where)
    given = found["prompt"]
    again = [repeats(given, side) for side in (chosen, rejected)]
    if isinstance(given, str):  # a single response may happen to begin with the words of a short prompt
        again = [all(again)] * 2
    chosen, rejected = (
        side[len(given) :] if twice else side for side, twice in zip((chosen, rejected), again, strict=True)
    )
    return Preference(given, chosen, rejected, row, where)
