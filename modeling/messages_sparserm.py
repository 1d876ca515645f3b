"""Bring messages into one form, with strings as contents, and wrap contents for templates that take only parts."""

from collections.abc import Callable, Mapping
from typing import Any

PROBE = "a content"
MOST_SHOWN = 60  # characters of a wrong value in an error


def plain_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """Check the messages of a conversation: each gets a content that is a string, and no field that is None.

    Args:
        messages: A list of messages that ends with the assistant's message.
        where: Name of the conversation in errors.

    Raises:
        ValueError: The messages have another form.
    """
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(
            f"{where} must be a string, a list of messages such as {{'role': 'user', 'content': 'Hello'}}, or a row "
            f"with such `messages`; it is {messages!r:.{MOST_SHOWN}}."
        )
    if not messages or messages[-1].get("role") != "assistant":
        raise ValueError(f"{where} must end with a message of the role assistant, whose reward is computed.")
    plain = []
    for number, message in enumerate(messages, 1):
        try:
            plain.append(without_none(message) | {"content": text_of(message)})
        except ValueError as error:
            raise ValueError(f"{where}: message {number} {error}") from None
    return plain


def text_of(message: Mapping[str, Any]) -> str:
    """Return the content of a message as a string: text parts are joined, and a tool call needs no content.

    Raises:
        ValueError: The role or the content is missing, or the content is not text. The error begins with a verb: the
            caller puts the name of the message in front.
    """
    if not isinstance(message.get("role"), str):
        raise ValueError("has no `role`, which must be a string such as 'user' or 'assistant'.")
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls"):
            raise ValueError("has no `content`: give it a string, which may be empty.")
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"has a `content` of the type {type(content).__name__}, but it must be a string.")
    for part in content:
        if not isinstance(part.get("text"), str) or part.get("type", "text") != "text":
            raise ValueError(
                f"has a `content` with a part of the type {part.get('type')!r:.{MOST_SHOWN}}, but SparseRM scores "
                "text only, even with a vision-language base model: leave that conversation out."
            )
    return "".join(part["text"] for part in content)


def without_none(value: Any) -> Any:
    """Remove the fields that are None, which `datasets` adds if other rows have such a field."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Wrap the content of a message into a list of one text part."""
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def takes_parts_only(render: Callable[[list[dict[str, Any]]], str]) -> bool:
    """Tell if a chat template writes contents that are lists of parts, but drops contents that are strings.

    The templates of some vision-language models, such as SmolVLM, do so.

    Args:
        render: The chat template: from messages to text.
    """
    message = {"role": "user", "content": PROBE}
    return _writes(render, in_parts(message)) and not _writes(render, message)


def _writes(render: Callable[[list[dict[str, Any]]], str], message: dict[str, Any]) -> bool:
    try:
        return PROBE in render([message])
    except Exception:  # a template may raise anything
        return False
