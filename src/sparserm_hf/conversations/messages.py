"""Lists of messages: check them, join their text parts, and put their tools beside them as a `Conversation`.

`row_texts.py` and `preferences.py` find the messages in a row; `row_checks.py` checks single fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..modeling.messages_sparserm import text_of
from ..runtime import SparseRMError, shown
from .row_checks import check_fields, check_text, without_none

Messages = list[dict[str, Any]]

# Arguments of `apply_chat_template` that steer the tokenizer, not the template.
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "max_length",
    "messages", "padding", "self",
    "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "truncation",
)  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """Messages, with the tools and further arguments for the chat template.

    Attributes:
        messages: Objects with `role` and `content`, and other fields that the template knows, such as `tool_calls`.
        tools: JSON schemas of the functions that the assistant may call.
        template_kwargs: Further arguments of the chat template.
    """

    messages: Messages
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


Text = str | Conversation
GivenText = str | Messages | Conversation  # as users pass it to a function


def is_messages(value: Any) -> bool:
    """Tell if a value is a list of messages, even broken ones."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(m, Mapping) for m in value)


def check_messages(value: Any, where: str) -> Messages:
    """Check a list of messages: afterwards each has a role, its content is a string, and no field is None.

    A content may be a list of text parts, which are joined. It may be missing if the message has tool calls.

    Args:
        value: The value that a user gave.
        where: Name of the value in errors, such as "Row 3, `chosen`".

    Raises:
        SparseRMError: The value is not a list of messages, or a content is not text.
    """
    if not is_messages(value) or not value:
        given = "an empty list" if value == [] else f"{shown(value)}, of the type {type(value).__name__}"
        raise SparseRMError(
            f"{where} is {given}, but must be a string, or a list of messages such as "
            "{'role': 'user', 'content': 'Hello'}."
        )
    return [_check_message(dict(message), f"{where}: message {i}") for i, message in enumerate(value, 1)]


def _check_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    message = check_fields(message, where)
    try:
        return message | {"content": text_of(message)}
    except ValueError as error:
        raise SparseRMError(f"{where} {error}") from None


def check_tools(row: Mapping[str, Any], where: str) -> tuple[list[Any] | None, dict[str, Any]]:
    """Parse the `tools` and `chat_template_kwargs` of a row, as TRL does; each may be JSON in a string.

    Raises:
        SparseRMError: `tools` is not a list, or `chat_template_kwargs` is not an object of a template's arguments.
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
            f"{where}, `chat_template_kwargs` has `{reserved[0]}`, which is not an argument of a chat template: leave "
            "it out."
        )
    tools = _from_json(kwargs.pop("tools", row.get("tools")), f"{where}, `tools`", "a list of functions")
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise SparseRMError(
            f"{where}, `tools` is of the type {type(tools).__name__}, but must be a list of functions."
        )
    return without_none(tools or None, f"{where}, `tools`"), kwargs


def _from_json(value: Any, where: str, needed: str) -> Any:
    """Parse a string as JSON, an empty string as None; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise SparseRMError(f"{where} is the string {shown(value)}, but must be {needed} in JSON.") from None


def as_conversation(
    messages: Messages, row: Mapping[str, Any], where: str, column: str, needs_response: bool = True
) -> Conversation:
    """Make a conversation of checked messages and the tools of their row.

    Args:
        messages: Messages that `check_messages` has checked.
        row: The row that holds the messages.
        where: Name of the row in errors.
        column: Name of the field that holds the messages.
        needs_response: Whether the last message must be the assistant's.

    Raises:
        SparseRMError: The last message must be the assistant's but is not, or the tools have the wrong type.
    """
    role = messages[-1]["role"]
    if needs_response and role != "assistant":
        raise SparseRMError(
            f"{where}, `{column}`: the last message has the role {shown(role)}, but only a response can be scored: "
            "end with the assistant's message."
        )
    return Conversation(messages, *check_tools(row, where))


def given_text(text: GivenText, where: str, column: str = "text") -> Text:
    """Check a text that a user passed to a function.

    Raises:
        SparseRMError: The text is neither a string nor messages that end with the assistant's.
    """
    if isinstance(text, Conversation):
        kwargs = {"tools": text.tools, "chat_template_kwargs": text.template_kwargs}
        return as_conversation(check_messages(text.messages, f"{where}, `{column}`"), kwargs, where, column)
    if isinstance(text, str):
        return check_text(text, f"{where}, `{column}`")
    return as_conversation(check_messages(text, f"{where}, `{column}`"), {}, where, column)


def check_texts(row: Mapping[str, Any], names: Iterable[str], where: str) -> dict[str, str | Messages]:
    """Check the named fields of a row, which must all be strings, or all be messages.

    Raises:
        SparseRMError: A field is neither, or some are strings and others messages.
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
