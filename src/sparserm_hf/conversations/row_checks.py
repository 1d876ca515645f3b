"""Checks of single rows and fields: text, nesting, media; and the names of rows and columns in errors.

No function here knows what a row means: `preferences.py` and `row_texts.py` find its texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..runtime import MOST_SHOWN, SparseRMError, shown

MOST_NAMES = 8  # column names that an error lists
MOST_NESTED = 100  # levels of lists and objects; Python's own functions give up at a few hundred
# Columns of the data sets that vision-language models are trained on.
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def row_name(number: int, source: str = "") -> str:
    """Name a row in errors: `Row 3`, or `pairs.jsonl, row 3`."""
    return f"{source}, row {number}" if source else f"Row {number}"


def list_names(columns: Iterable[Any]) -> str:
    """List column names for an error; a name that is not a plain word is quoted, and a long name is shortened.

    Example:
        >>> list_names(["id", "a name", ""])
        "id, 'a name', ''"
    """
    names = [name if str(name).isidentifier() and len(str(name)) <= MOST_SHOWN else shown(name) for name in columns]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(map(str, names[:MOST_NAMES])) or "none") + more


def check_text(text: str, where: str) -> str:
    """Check that a string can be written as UTF-8.

    Raises:
        SparseRMError: The string holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SparseRMError(
            f"{where} holds half of a surrogate pair ({text[error.start]!r}) at character {error.start + 1}, which no "
            "file can store: remove it, or write the whole character."
        ) from None
    return text


def check_row(row: Any, where: str) -> None:
    """Raise a `SparseRMError` if a row is not an object with columns, or has images, videos or sound."""
    if not isinstance(row, Mapping):
        raise SparseRMError(
            f"{where} is {shown(row)}, of the type {type(row).__name__}, but must be an object with columns, such as "
            "{'chosen': 'Yes.', 'rejected': 'No.'}."
        )
    for name in MEDIA:
        if row.get(name) not in (None, "", [], {}):
            raise SparseRMError(f"{where} has `{name}`, but SparseRM scores text only: leave that row out.")


def check_fields(fields: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Remove the fields that are None from a row or a message; see `without_none`.

    Raises:
        SparseRMError: A string cannot be written as UTF-8, or a field is nested more than ``MOST_NESTED`` deep.
    """
    kept = [(name, value) for name, value in fields.items() if value is not None]
    return {
        check_text(str(name), f"{where}, the name {shown(name)},"): without_none(
            value, f"{where}, `{list_names([name])}`"
        )
        for name, value in kept
    }


def without_none(value: Any, where: str, deepest: int = MOST_NESTED) -> Any:
    """Remove the fields that are None, which `datasets` adds if other rows have such a field.

    Args:
        value: A field's value, with lists and objects at any depth.
        where: Name of the value in errors.
        deepest: Largest number of nested lists and objects.

    Raises:
        SparseRMError: A string cannot be written as UTF-8, or the value is nested deeper.
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
