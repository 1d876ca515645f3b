"""Errors that a user can mend, and errors of other libraries turned into such errors."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MOST_REASON = 300  # characters shown of another library's error
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxlong = _shorten.maxother = MOST_SHOWN = 60  # characters shown of a value


class SparseRMError(ValueError):
    """An input is wrong. The message says what was given, what is needed and how to mend it.

    Example:
        >>> from sparserm_hf import load_preferences
        >>> load_preferences("no-such-file.jsonl")
        Traceback (most recent call last):
        ...
        sparserm_hf.runtime.errors.SparseRMError: There is no file no-such-file.jsonl.
    """


def reason(error: BaseException) -> str:
    r"""Return the first line of an error's message, or the name of its class if the message is empty.

    Example:
        >>> reason(OSError("No space left\nfurther lines"))
        'No space left'
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def reading(what: str, mend: str = "it was cut short or changed: download or save it again") -> Iterator[None]:
    """Turn any error in a block that reads a foreign file into a `SparseRMError`.

    A foreign file can make a library raise anything: a KeyError, a MemoryError, or the panic of a library in Rust,
    which is no `Exception`.

    Args:
        what: The subject of the message, such as a file name.
        mend: Advice to the user.

    Raises:
        SparseRMError: The block raised. A `SparseRMError` of the block passes unchanged.

    Example:
        >>> with reading("The file x", "download it again"):
        ...     {}["weight"]
        Traceback (most recent call last):
        ...
        sparserm_hf.runtime.errors.SparseRMError: The file x cannot be read (KeyError: 'weight'): download it again.
    """
    with _telling(lambda why: f"{what} cannot be read ({why}): {mend}."):
        yield


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn any error in a block that loads a foreign model or tokenizer into a `SparseRMError`; see `reading`.

    Args:
        what: The subject of the message, such as the name of a model.

    Raises:
        SparseRMError: The block raised. A `SparseRMError` of the block passes unchanged.

    Example:
        >>> with loading("The model x"):
        ...     raise OSError("no such repository")
        Traceback (most recent call last):
        ...
        sparserm_hf.runtime.errors.SparseRMError: The model x cannot be loaded: no such repository.
    """
    with _telling(lambda why: f"{what} cannot be loaded: {why}."):
        yield


@contextmanager
def _telling(sentence: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except (SparseRMError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise SparseRMError(sentence(kind_and_reason(error))) from error


def kind_and_reason(error: BaseException) -> str:
    """Return the first line of an error's message, after the name of its class unless it is a ValueError or OSError.

    Example:
        >>> kind_and_reason(KeyError("weight")), kind_and_reason(ValueError("Too long."))
        ("KeyError: 'weight'", 'Too long')
    """
    told, kind = reason(error).rstrip("."), type(error).__name__
    told = told if len(told) <= MOST_REASON else f"{told[:MOST_REASON]}..."
    return told if isinstance(error, (ValueError, OSError)) or told == kind else f"{kind}: {told}"


def without_extra(what: str, error: ModuleNotFoundError, extra: str) -> SparseRMError:
    """Make the error for a missing package that an extra installs.

    Args:
        what: The part of this package that needs the missing package; the subject of the message.
        error: The failed import.
        extra: Name of the extra.

    Example:
        >>> print(without_extra("The server", ModuleNotFoundError(name="fastapi"), "serve"))
        The server needs fastapi: install the extra `serve`, as in pip install '.[serve]'.
    """
    return SparseRMError(f"{what} needs {error.name}: install the extra `{extra}`, as in pip install '.[{extra}]'.")


def needs_extra(what: str, extra: str, *modules: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        what: The part of this package that needs the extra; the subject of the message.
        extra: Name of the extra.
        modules: Names of the modules that the extra installs.

    Raises:
        SparseRMError: A module is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise without_extra(what, ModuleNotFoundError(name=module), extra)


@contextmanager
def full_disk_as_os_error(path: Path) -> Iterator[None]:
    """Turn the error of safetensors for a full disk into an `OSError`, as other libraries raise it."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def shown(value: Any) -> str:
    """Format a value for an error: on one line, and not longer than a line.

    Example:
        >>> shown(list("responses"))
        "['r', 'e', 's', 'p', 'o', 'n', ...]"
    """
    try:
        text = _shorten.repr(value).encode(errors="backslashreplace").decode()
    except ValueError:  # a number of thousands of digits
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
