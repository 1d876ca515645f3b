"""Replace files and folders as a whole: a killed process leaves the old one or the new one, never a mixture."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from .errors import full_disk_as_os_error

WRITING = ".writing-"  # in the name of a temporary folder, after the name of the file or folder to replace
OLD = "old"  # the replaced folder inside the temporary one, on systems that cannot exchange two folders
# Files of a checkpoint. A new checkpoint removes those of an earlier one.
OWN_FILES = (
    "*.jinja",
    "*_sparserm.py",
    "added_tokens.json",
    "additional_chat_templates",
    "config.json",
    "controls.safetensors",
    "drift.safetensors",
    "evaluation.png",
    "evaluation.safetensors",
    "generation_config.json",
    "merges.txt",
    "model*.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.*",
)


def is_own(name: str) -> bool:
    """Tell if this package writes files of this name into a checkpoint.

    Example:
        >>> is_own("model-00001-of-00002.safetensors"), is_own("notes.txt")
        (True, False)
    """
    return any(fnmatch(name, pattern) for pattern in OWN_FILES)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; if the block succeeds, that file replaces `path`.

    Args:
        path: File to replace or to make.

    Yields:
        Path to write to.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> with replacing_file(Path("notes.txt")) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> Path("notes.txt").read_text()
        'whole'
        >>> Path("notes.txt").unlink()
    """
    with temporary_beside(path) as temporary, full_disk_as_os_error(path):
        yield temporary / path.name
        (temporary / path.name).replace(path)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; if the block succeeds, that folder replaces `folder`.

    If the block fails, `folder` stays as it was. Files that this package did not write are kept.

    Args:
        folder: Folder to replace or to make.

    Yields:
        Folder to write into.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = folder.resolve()  # a link stays, and its target is replaced
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(folder) as temporary, full_disk_as_os_error(folder):
        new = temporary / folder.name
        new.mkdir()
        yield new
        for entry in folder.iterdir() if folder.exists() else ():
            if not is_own(entry.name) and not (new / entry.name).exists():
                _keep(entry, new / entry.name)
        _swap(new, folder, temporary / OLD)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, after removing temporary folders that killed processes left there."""
    for left in path.parent.glob(f".{glob.escape(path.name)}{WRITING}*"):
        _sweep(left, path)
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{WRITING}", dir=path.parent))
        with _lock(temporary):
            if not temporary.exists():  # another process swept it before it was locked
                continue
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return


def _sweep(left: Path, path: Path) -> None:
    with suppress(OSError), _lock(left, wait=False):
        if (left / OLD).exists() and not path.exists():  # killed between the two renames of `_swap`
            (left / OLD).rename(path)
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Lock a folder; the lock ends with this process at the latest.

    Args:
        folder: The folder.
        wait: Wait for another process to release it.

    Raises:
        OSError: Another process holds the lock, and `wait` is false.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _keep(entry: Path, place: Path) -> None:
    """Link a file, or each file of a folder, into another place, or copy it on filesystems without hard links."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, place, symlinks=True, copy_function=_link)
    else:
        _link(entry, place)


def _link(entry: str | Path, place: str | Path) -> None:
    try:
        os.link(entry, place, follow_symlinks=False)
    except OSError:  # a filesystem without hard links
        shutil.copy2(entry, place, follow_symlinks=False)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Replace a folder by another one, in a single step on systems that can."""
    if not folder.exists():
        new.rename(folder)
        return
    try:
        _exchange(new, folder)
    except (AttributeError, OSError):
        folder.rename(old)
        new.rename(folder)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders.

    Raises:
        AttributeError: The C library has no such call.
        OSError: The filesystem does not support it.
    """
    libc, names, here, swap = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other)), -100, 2
    if sys.platform == "darwin":
        failed = libc.renamex_np(*names, swap)
    else:
        failed = libc.renameat2(here, names[0], here, names[1], swap)
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
