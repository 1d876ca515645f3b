"""Print text safely: control characters in a label or a file name are shown, and do not steer the terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

_DIRECTIONS = (
    0x061C,
    0x200E,
    0x200F,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)  # right-to-left marks
_OTHERS = (*range(0x80, 0xA0), *_DIRECTIONS, 0x2028, 0x2029, *range(0xD800, 0xE000))
# Each character is replaced by one character, so that tables keep their widths. Unicode has a picture of each ASCII
# control character.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) != "\n"} | {0x7F: 0x2421}
_SHOWN |= dict.fromkeys(_OTHERS, 0xFFFD)


def visible(text: str) -> str:
    r"""Replace characters that steer a terminal by visible ones; newlines stay.

    Example:
        >>> visible("a label\x1b[2J")
        'a label␛[2J'
    """
    return text.translate(_SHOWN)


def escaped_json(line: str) -> str:
    r"""Escape characters that steer a terminal in a line of JSON; the JSON values stay the same.

    Example:
        >>> escaped_json('{"text": "\x9b2J"}')
        '{"text": "\\u009b2J"}'
    """
    return line.translate({code: f"\\u{code:04x}" for code in _SHOWN})


def one_line(text: str) -> str:
    r"""Make a text visible and put it on one line, so that no part of it looks like a line of its own.

    Example:
        >>> one_line("a label\nerror: a forged line")
        'a label error: a forged line'
    """
    return visible(" ".join(text.splitlines()))


def say(text: str) -> None:
    """Print a text on standard output.

    Example:
        >>> say("Saved my-reward-model.")
        Saved my-reward-model.
    """
    print(visible(text), flush=True)


def say_hint(text: str) -> None:
    """Print a hint on standard error, beside the results on standard output."""
    print(visible(text), file=sys.stderr)


def say_error(text: str) -> None:
    """Print an error on standard error, on one line."""
    print(f"sparserm: error: {one_line(text)}", file=sys.stderr)


class Console(RichConsole):
    """A console of rich that makes strings `visible`; a `rich.text.Text` is printed unchanged."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(emoji=False, **kwargs)  # `:warning:` in a label is no emoji

    def render_str(self, text: str, **kwargs: Any) -> Text:  # type: ignore[override]
        """Turn a string with markup into a `Text`."""
        return super().render_str(visible(text), **kwargs)


class VisibleFormatter(logging.Formatter):
    """A formatter of log records that makes them `visible`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return visible(super().format(record))
