"""Rows of any form: a text, a conversation, a prompt with its completion, or a preference pair."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from ..runtime import SparseRMError, common_prefix_length, shown
from .messages import Messages, Text, as_conversation, check_messages, check_text, is_messages, named

FORMATS = (
    "Each row needs `chosen` and `rejected`, and may have a `prompt` and a number `margin`: all of them strings, or "
    "all lists of {'role', 'content'}."
)
# Where an answer starts in a string: the dialogues of Anthropic's HH-RLHF, and many after them.
TURN = re.compile(r"\n\n(?:Assistant|ASSISTANT|AI|Bot|Response|Answer):")


# Columns of what vision-language models are trained on.
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


@dataclass(frozen=True)
class Preference:
    """A prompt with two responses to it.

    Attributes:
        prompt: A string, or messages; empty where there is none.
        chosen: The better response, of the same form.
        rejected: The other one.
        row: The row that they stand in, for its tools.
        where: What errors call the row.
    """

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    row: Mapping[str, Any]
    where: str

    @property
    def joined(self) -> tuple[str | Messages, str | Messages]:
        """The prompt with the chosen response, and with the rejected one."""
        return self.prompt + self.chosen, self.prompt + self.rejected  # type: ignore[operator]

    def text(self, side: str) -> Text:
        """The prompt with the response of one side, `chosen` or `rejected`.

        Raises:
            SparseRMError: The response is made of messages and does not end with the assistant's.
        """
        whole = self.joined[("chosen", "rejected").index(side)]
        return whole if isinstance(whole, str) else as_conversation(whole, self.row, self.where, side)

    def is_empty(self, side: str) -> bool:
        """Whether nothing is written in the response of one side."""
        response = getattr(self, side)
        if isinstance(response, str):
            return not response.strip()
        return not any(m["content"].strip() or m.get("tool_calls") or m.get("reasoning_content") for m in response)


def check_columns(columns: Iterable[str]) -> None:
    """Raise a `SparseRMError` unless the columns hold preference pairs."""
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise SparseRMError(f"The column `{missing[0]}` is missing; the columns are {named(columns)}. {FORMATS}")


def check_row(row: Any, where: str) -> None:
    """Raise a `SparseRMError` unless a row has columns, and none with images, videos or sound."""
    if not isinstance(row, Mapping):
        raise SparseRMError(
            f"{where} is {shown(row)}, of the type {type(row).__name__}, but must be an object with columns, such as "
            "{'chosen': 'Yes.', 'rejected': 'No.'}."
        )
    for name in MEDIA:
        if row.get(name) not in (None, "", [], {}):
            raise SparseRMError(f"{where} has `{name}`, but SparseRM reads text alone: leave that row out.")


def checked(row: Mapping[str, Any], names: Iterable[str], where: str) -> dict[str, str | Messages]:
    """The named fields of a row: all strings, or all messages.

    Raises:
        SparseRMError: One is of another form, or they are of different forms.
    """
    values = {
        name: check_text(row[name], f"{where}, `{name}`")
        if isinstance(row[name], str)
        else check_messages(row[name], f"{where}, `{name}`")
        for name in names
    }
    if len({isinstance(value, str) for value in values.values()}) > 1:
        kinds = ", ".join(f"`{n}` is {'a string' if isinstance(v, str) else 'messages'}" for n, v in values.items())
        raise SparseRMError(f"{where}: {kinds}; all must be strings, or all lists of {{'role', 'content'}}.")
    return values


def read_preference(row: Mapping[str, Any], where: str) -> Preference:
    """Check a preference pair, and tell the prompt from the responses.

    A prompt that `chosen` and `rejected` begin with too is taken off them. Where there is no prompt, it is what both
    begin with: whole messages; of strings, all up to the last answer's start, or else whole words. Something is left
    of both responses in any case.

    Args:
        row: A row in one of TRL's preference formats.
        where: What errors call it, see `row_name`.

    Raises:
        SparseRMError: A field is missing or of another form.
    """
    check_row(row, where)
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise SparseRMError(f"{where} has no `{name}` response. {FORMATS}")
    prompt = row.get("prompt")
    if isinstance(prompt, str) and is_messages(row["chosen"]):  # UltraFeedback has the first question as its prompt
        sides = [side for side in (row["chosen"], row["rejected"]) if is_messages(side)]
        whole = all(any(message.get("role") == "user" for message in side) for side in sides)
        prompt = None if whole else [{"role": "user", "content": prompt}]
    names = [name for name in ("prompt", "chosen", "rejected") if name != "prompt" or prompt is not None]
    found = checked({**row, "prompt": prompt}, names, where)
    chosen, rejected = found["chosen"], found["rejected"]
    if prompt is None:
        shared: str | Messages = chosen[: implicit_prompt(chosen, rejected)]
        return Preference(shared, chosen[len(shared) :], rejected[len(shared) :], row, where)
    given = found["prompt"]
    again = [_repeats(given, side) for side in (chosen, rejected)]
    if isinstance(given, str):  # one response alone may well begin with the words of a short prompt
        again = [all(again)] * 2
    chosen, rejected = (
        side[len(given) :] if twice else side for side, twice in zip((chosen, rejected), again, strict=True)
    )
    return Preference(given, chosen, rejected, row, where)


def _repeats(prompt: str | Messages, response: str | Messages) -> bool:
    """Whether a response begins with the prompt, and goes on."""
    return len(response) > len(prompt) and response[: len(prompt)] == prompt


def implicit_prompt(chosen: str | Messages, rejected: str | Messages) -> int:
    """Length of the prompt that two responses begin with: in messages, or in characters."""
    shared = common_prefix_length(chosen, rejected)
    if not isinstance(chosen, str):
        return min(shared, len(chosen) - 1, len(rejected) - 1)
    assert isinstance(rejected, str)
    if shared == len(chosen) == len(rejected):
        return 0
    turns = [match.end() for match in TURN.finditer(chosen[:shared])]
    if turns and chosen[turns[-1] :].strip() and rejected[turns[-1] :].strip():
        return turns[-1]
    # The starts of words that both have, and after which something is left of both.
    least = min(len(chosen.rstrip()), len(rejected.rstrip()))
    starts = (i for i in range(min(shared, least - 1), 0, -1) if chosen[i - 1].isspace() and not chosen[i].isspace())
    return next(starts, 0)


def texts_of_row(row: Mapping[str, Any], where: str, needs_response: bool = True) -> dict[str, Text]:
    """The texts of a row, by the name of the reward that each gets.

    A row is a preference pair (`chosen`, `rejected`, perhaps `prompt`), a `prompt` with a `completion`, or a whole
    `text` or `messages`. Conversations may have `tools` and `chat_template_kwargs` beside them.

    Args:
        row: The row.
        where: What errors call it, see `row_name`.
        needs_response: Whether a conversation must end with the assistant's message.

    Raises:
        SparseRMError: It is none of these, or a conversation does not end with the assistant's message.
    """
    check_row(row, where)
    if "chosen" in row and "rejected" in row:
        pair = read_preference(row, where)
        return {f"{side}_reward": pair.text(side) for side in ("chosen", "rejected")}
    columns = ("prompt", "completion") if "prompt" in row and "completion" in row else ("messages",)
    columns = columns if columns[0] in row else ("text",)
    if columns[0] in row:
        parts = list(checked(row, columns, where).values())
        if len(parts) == 2 and not isinstance(parts[0], str) and _repeats(parts[0], parts[1]):
            parts = parts[1:]  # the completion is the whole conversation
        whole = reduce(add, parts)
        if isinstance(whole, str):
            return {"reward": whole}
        return {"reward": as_conversation(whole, row, where, columns[-1], needs_response)}
    raise SparseRMError(
        f"{where} has the columns {named(row)}; it needs `text`, `messages`, `prompt` and "
        "`completion`, or a preference pair `chosen` and `rejected`."
    )
