"""Files and folders are replaced as a whole: whenever a process is killed, the old one is there or the new one."""

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

WRITING = ".writing-"  # in the name of a temporary folder, after the name of what is replaced
OLD = "old"  # in it: what was there before, where two folders cannot be exchanged
# Names of what a model, its tokenizer and what lies beside it are saved as: of an earlier one, none of these stays.
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
    """Whether a file of this name is one that this package writes into a folder."""
    return any(fnmatch(name, pattern) for pattern in OWN_FILES)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name; when the block ends well, that file takes the place of `path`."""
    with temporary_beside(path) as temporary, full_disk_as_os_error(path):
        yield temporary / path.name
        (temporary / path.name).replace(path)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; when the block ends well, it takes the place of `folder`.

    A block that fails leaves `folder` as it was. Files that are not this package's stay.
    """
    folder = folder.resolve()  # of a link to a folder, the folder is replaced
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
    """Yield a temporary folder beside `path`, after removing those that killed processes have left there."""
    for left in path.parent.glob(f".{glob.escape(path.name)}{WRITING}*"):
        _sweep(left, path)
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{WRITING}", dir=path.parent))
        with _lock(temporary):
            if not temporary.exists():  # taken for a left one before it was locked
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
    """Hold a folder as long as this process lives.

    Raises:
        OSError: Another process holds it, and is not to be waited for.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _keep(entry: Path, place: Path) -> None:
    """Put a file or folder into another place as well, without copying where that can be."""
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
    """Put a folder in the place of another one, in one step where the system can: readers find one or the other."""
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
        AttributeError: The C library cannot.
        OSError: The filesystem cannot.
    """
    libc, names, here, swap = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other)), -100, 2
    if sys.platform == "darwin":
        failed = libc.renamex_np(*names, swap)
    else:
        failed = libc.renameat2(here, names[0], here, names[1], swap)
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
