"""Errors of rows on standard error."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime import say_error
from ..scoring import ROW_ERROR

MOST_ERRORS = 10  # errors that get a line each


def tell_errors(errors: Sequence[str]) -> int:
    """Print the errors of rows that could not be used.

    Args:
        errors: One error for each of these rows.

    Returns:
        The exit code: 2 if there are errors, else 0.

    Example:
        >>> tell_errors([])
        0
    """
    for error in errors[:MOST_ERRORS]:
        say_error(error)
    if len(errors) > MOST_ERRORS:
        say_error(f"and {len(errors) - MOST_ERRORS} rows more, see `{ROW_ERROR}`.")
    return 2 if errors else 0
