"""Single files of a checkpoint, in a folder or on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Find a file of a checkpoint; a file on the Hub is downloaded into the Hub's cache.

    Args:
        name: Folder or Hub id of the checkpoint.
        file: Name of the file.
        revision: Revision on the Hub.

    Returns:
        Path of the file; None if the checkpoint has no such file, or if it is not cached and there is no network.

    Example:
        >>> print(find_file(".", "no-such-file"))
        None
    """
    if Path(name).is_dir():
        path = Path(name, file)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except EntryNotFoundError:
        return None
