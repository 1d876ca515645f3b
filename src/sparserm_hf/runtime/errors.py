"""The error that a user can mend, and the errors of other libraries put into our words."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MOST_REASON = 300  # characters of an error of another library
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxlong = _shorten.maxother = MOST_SHOWN = 60  # characters of a value in an error


class SparseRMError(ValueError):
    """Something given is wrong; the message says what was given, what is needed and how to mend it."""


def reason(error: BaseException) -> str:
    """The first line of an error of another library, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def reading(what: str, mend: str = "it was cut short or changed: download or save it again") -> Iterator[None]:
    """Turn whatever goes wrong in reading a foreign file into a `SparseRMError`.

    A file of somebody else can make a library raise anything: a KeyError, a MemoryError, or the panic of a library in
    Rust, which is no `Exception`.

    Args:
        what: What is read, the subject of the sentence.
        mend: What the user can do.

    Raises:
        SparseRMError: It cannot be read. Its own `SparseRMError` passes as it is.

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
    """Turn whatever goes wrong in loading a foreign model or tokenizer into a `SparseRMError`; see `reading`.

    Args:
        what: What is loaded, the subject of the sentence.

    Raises:
        SparseRMError: It cannot be loaded. Its own `SparseRMError` passes as it is.
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
    """The first line of an error; with its kind, where the line alone says little, as that of a KeyError."""
    told, kind = reason(error).rstrip("."), type(error).__name__
    told = told if len(told) <= MOST_REASON else f"{told[:MOST_REASON]}..."
    return told if isinstance(error, (ValueError, OSError)) or told == kind else f"{kind}: {told}"


def without_extra(what: str, error: ModuleNotFoundError, extra: str) -> SparseRMError:
    """The error where something needs a package that one of our extras installs."""
    return SparseRMError(f"{what} needs {error.name}: install the extra `{extra}`, as in pip install '.[{extra}]'.")


@contextmanager
def full_disk_as_os_error(path: Path) -> Iterator[None]:
    """Turn what safetensors makes of a full disk into the `OSError` that everything else makes of it."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, and no longer than a line, whatever it is.

    Example:
        >>> shown(list("responses"))
        "['r', 'e', 's', 'p', 'o', 'n', ...]"
    """
    try:
        text = _shorten.repr(value).encode(errors="backslashreplace").decode()
    except ValueError:  # a number of thousands of digits
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
