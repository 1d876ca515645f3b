"""The error that a user can mend, and the errors of other libraries put into our words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

MOST_ERRORS = 10  # rows that could not be used, of which each gets its own line


class SparseRMError(ValueError):
    """Something given is wrong; the message says what was given, what is needed and how to mend it."""


def reason(error: BaseException) -> str:
    """The first line of an error of another library, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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


def tell_errors(errors: Sequence[str]) -> int:
    """Say which rows were not scored; returns the exit code."""
    for error in errors[:MOST_ERRORS]:
        print(f"sparserm: error: {error}", file=sys.stderr)
    if len(errors) > MOST_ERRORS:
        print(f"sparserm: error: and {len(errors) - MOST_ERRORS} rows more, see `reward_error`.", file=sys.stderr)
    return 2 if errors else 0
