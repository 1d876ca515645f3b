"""cli.output."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime import say_error

MOST_ERRORS = 10  # rows that could not be used, of which each gets its own line


def tell_errors(errors: Sequence[str]) -> int:
    """Say which rows were not scored; returns the exit code."""
    for error in errors[:MOST_ERRORS]:
        say_error(error)
    if len(errors) > MOST_ERRORS:
        say_error(f"and {len(errors) - MOST_ERRORS} rows more, see `reward_error`.")
    return 2 if errors else 0
