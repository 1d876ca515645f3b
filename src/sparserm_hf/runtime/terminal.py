"""Text for the terminal. Whatever a label or a file name holds, it is shown as text and steers no terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # text that runs backwards
_OTHERS = (*range(0x80, 0xA0), *_DIRECTIONS, 0x2028, 0x2029, *range(0xD800, 0xE000))
# Each becomes one character, so that tables keep their widths: Unicode has a picture of each ASCII control character.
_SHOWN = {code: 0x2400 + code for code in range(0x20) if chr(code) != "\n"} | {0x7F: 0x2421}
_SHOWN |= dict.fromkeys(_OTHERS, 0xFFFD)


def visible(text: str) -> str:
    r"""A text in which characters that steer a terminal are replaced by characters that are seen; newlines stay.

    Example:
        >>> visible("a label\x1b[2J")
        'a label␛[2J'
    """
    return text.translate(_SHOWN)


def escaped_json(line: str) -> str:
    r"""A line of JSON in which characters that steer a terminal are written as escapes: the values stay exact.

    Example:
        >>> escaped_json('{"text": "\x9b2J"}')
        '{"text": "\\u009b2J"}'
    """
    return line.translate({code: f"\\u{code:04x}" for code in _SHOWN})


def one_line(text: str) -> str:
    """The same on one line, so that no text can look like a line of its own."""
    return visible(" ".join(text.splitlines()))


def say(text: str) -> None:
    """Print a text on standard output."""
    print(visible(text), flush=True)


def say_error(text: str) -> None:
    """Print an error on standard error, on one line."""
    print(f"sparserm: error: {one_line(text)}", file=sys.stderr)


class Console(RichConsole):
    """The console of rich for strings that may hold anything: they are shown as `visible` has it.

    A `rich.text.Text` is printed as it is.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(emoji=False, **kwargs)  # :warning: in a label stays what it is

    def render_str(self, text: str, **kwargs: Any) -> Text:  # type: ignore[override]
        """Make a string, with its markup, a `Text`."""
        return super().render_str(visible(text), **kwargs)


class VisibleFormatter(logging.Formatter):
    """Formats log records as `visible` has it."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as text."""
        return visible(super().format(record))
