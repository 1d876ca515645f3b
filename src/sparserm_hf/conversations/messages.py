"""Conversations as users give them: checked, and brought into one form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runtime import MOST_SHOWN, SparseRMError, shown

Messages = list[dict[str, Any]]

MOST_NAMES = 8  # columns that an error names
MOST_NESTED = 100  # lists and objects in each other; Python's own functions give up at a few hundred
# Arguments of `apply_chat_template` that decide what a tokenizer does, not what the template writes.
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "max_length",
    "messages", "padding", "self",
    "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "truncation",
)  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """Messages and what the chat template needs besides them.

    Attributes:
        messages: Of `role` and `content`, and whatever else the template knows, such as `tool_calls`.
        tools: JSON schemas of the functions that the assistant may call.
        template_kwargs: Further arguments of the chat template.
    """

    messages: Messages
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


Text = str | Conversation
GivenText = str | Messages | Conversation  # as users pass it to a function


def row_name(number: int, source: str = "") -> str:
    """What errors call a row: `Row 3`, or `pairs.jsonl, row 3`."""
    return f"{source}, row {number}" if source else f"Row {number}"


def named(columns: Iterable[Any]) -> str:
    """The names of columns as an error shows them: a name that is not a plain word is quoted, a long one shortened.

    Example:
        >>> named(["id", "a name", ""])
        "id, 'a name', ''"
    """
    names = [name if str(name).isidentifier() and len(str(name)) <= MOST_SHOWN else shown(name) for name in columns]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(map(str, names[:MOST_NAMES])) or "none") + more


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, however broken they are; strings and numbers are not."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(m, Mapping) for m in value)


def check_text(text: str, where: str) -> str:
    """A string, which must be one that can be written as UTF-8.

    Raises:
        SparseRMError: Half of a surrogate pair stands in it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SparseRMError(
            f"{where} holds half of a surrogate pair ({text[error.start]!r}) at character {error.start + 1}, which is "
            "no text: remove it, or write the whole character."
        ) from None
    return text


def check_messages(value: Any, where: str) -> Messages:
    """Messages in one form: each with a role, the content a string, and no field that is None.

    A content may be a list of text parts, which are joined. It may be missing where there are tool calls.

    Args:
        value: What was given.
        where: What errors call it, such as "Row 3, `chosen`".

    Raises:
        SparseRMError: It is no list of messages, or a content is no text.
    """
    if not is_messages(value) or not value:
        given = "an empty list" if value == [] else f"{shown(value)}, of the type {type(value).__name__}"
        raise SparseRMError(
            f"{where} is {given}, but must be a string, or a list of messages such as "
            "{'role': 'user', 'content': 'Hello'}."
        )
    return [_check_message(dict(message), f"{where}: message {i}") for i, message in enumerate(value, 1)]


def _check_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise SparseRMError(f"{where} has no `role`, which must be a string such as 'user' or 'assistant'.")
    message = check_fields(message, where)
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls"):
            raise SparseRMError(f"{where} has no `content`: give it a string, which may be empty.")
        content = ""
    elif not isinstance(content, str):
        content = _join_parts(content, where)
    return message | {"content": content}


def _join_parts(parts: Any, where: str) -> str:
    if not is_messages(parts):
        raise SparseRMError(f"{where}: its `content` is of the type {type(parts).__name__}, but must be a string.")
    for part in parts:
        if not isinstance(part.get("text"), str) or part.get("type", "text") != "text":
            raise SparseRMError(
                f"{where}: its `content` has a part of the type {shown(part.get('type'))}, but SparseRM reads text "
                "alone, with a vision-language model too: leave that conversation out."
            )
    return "".join(part["text"] for part in parts)


def without_none(value: Any, where: str, deepest: int = MOST_NESTED) -> Any:
    """A value without the fields that are None, which `datasets` puts where other rows have such a field.

    Args:
        value: What was given.
        where: What errors call it.
        deepest: How many lists and objects may stand in each other.

    Raises:
        SparseRMError: A string in it is no text, or it is nested deeper.
    """
    if isinstance(value, str):
        return check_text(value, where)
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if deepest == 0:
        raise SparseRMError(
            f"{where} holds lists or objects that are nested more than {MOST_NESTED} deep: flatten them, or leave the "
            "field out."
        )
    if isinstance(value, Mapping):
        given = ((check_text(str(k), where), v) for k, v in value.items() if v is not None)
        return {key: without_none(v, where, deepest - 1) for key, v in given}
    return [without_none(item, where, deepest - 1) for item in value]


def check_fields(fields: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """A row, or a message, without what is None; an error names the field, see `without_none`.

    Raises:
        SparseRMError: A string in it is no text, or a field is nested too deep.
    """
    kept = [(name, value) for name, value in fields.items() if value is not None]
    return {
        check_text(str(name), f"{where}, the name {shown(name)},"): without_none(value, f"{where}, `{named([name])}`")
        for name, value in kept
    }


def check_tools(row: Mapping[str, Any], where: str) -> tuple[list[Any] | None, dict[str, Any]]:
    """The `tools` and the `chat_template_kwargs` of a row, as TRL takes them; each may be JSON in a string.

    Raises:
        SparseRMError: They are of another kind.
    """
    kwargs = _from_json(row.get("chat_template_kwargs"), f"{where}, `chat_template_kwargs`", "an object")
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping):
        raise SparseRMError(
            f"{where}, `chat_template_kwargs` is of the type {type(kwargs).__name__}, but must be an object, such as "
            "{'enable_thinking': false}."
        )
    kwargs = without_none(kwargs, f"{where}, `chat_template_kwargs`")
    reserved = [name for name in RESERVED if name in kwargs]
    if reserved:
        raise SparseRMError(
            f"{where}, `chat_template_kwargs` has `{reserved[0]}`, which is no argument of a chat template: leave it "
            "out."
        )
    tools = _from_json(kwargs.pop("tools", row.get("tools")), f"{where}, `tools`", "a list of functions")
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise SparseRMError(
            f"{where}, `tools` is of the type {type(tools).__name__}, but must be a list of functions."
        )
    return without_none(tools or None, f"{where}, `tools`"), kwargs


def _from_json(value: Any, where: str, needed: str) -> Any:
    """A value, or what is written in it where it is a string; None where nothing is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise SparseRMError(f"{where} is the string {shown(value)}, which is not JSON of {needed}.") from None


def as_conversation(
    messages: Messages, row: Mapping[str, Any], where: str, column: str, needs_response: bool = True
) -> Conversation:
    """Checked messages as a conversation, with the tools of their row.

    Args:
        messages: See `check_messages`.
        row: The row that they stand in.
        where: What errors call the row.
        column: The field that they stand in.
        needs_response: Whether the last message must be the assistant's.

    Raises:
        SparseRMError: It is not, or the tools are of another kind.
    """
    role = messages[-1]["role"]
    if needs_response and role != "assistant":
        raise SparseRMError(
            f"{where}, `{column}`: the last message is of the role {shown(role)}, but a reward is that of a response: "
            "end with the assistant's message."
        )
    return Conversation(messages, *check_tools(row, where))


def given_text(text: GivenText, where: str, column: str = "text") -> Text:
    """What a user passed to a function, checked.

    Raises:
        SparseRMError: It is neither a string nor messages that end with the assistant's.
    """
    if isinstance(text, Conversation):
        kwargs = {"tools": text.tools, "chat_template_kwargs": text.template_kwargs}
        return as_conversation(check_messages(text.messages, f"{where}, `{column}`"), kwargs, where, column)
    if isinstance(text, str):
        return check_text(text, f"{where}, `{column}`")
    return as_conversation(check_messages(text, f"{where}, `{column}`"), {}, where, column)
