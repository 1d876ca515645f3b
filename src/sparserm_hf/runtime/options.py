"""Fields of settings, which become options of the command line."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **others: str) -> Any:
    """Make a field of a dataclass that describes itself.

    Args:
        default: Default of the setting.
        help: Description, also in the command's help.
        others: Further metadata: `off`, the help of the option that turns a true setting off.

    Example:
        >>> from dataclasses import dataclass, fields
        >>> @dataclass
        ... class Settings:
        ...     k: int = option(8, "Number of latents.")
        >>> Settings().k, fields(Settings)[0].metadata["help"]
        (8, 'Number of latents.')
    """
    return field(default=default, metadata={"help": help} | others)
