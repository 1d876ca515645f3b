"""Read the files of an SAE without running code in them."""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...runtime import reason

MOST_UNPACKED = 100  # times the size of an archive; compression hardly shrinks weights


class UnusableSAEError(ValueError):
    """Reason why an SAE cannot be used: the rest of a sentence that begins with "The SAE <name>"."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UnusableSAEError: The file is missing, or holds no JSON object.
    """
    if not path.is_file():
        raise UnusableSAEError(f"is incomplete: {path.name} must stand beside its weights.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError; too deeply nested
        raise UnusableSAEError(f"is broken: {path.name} is not JSON: {reason(error)}.") from error
    if not isinstance(content, dict):
        raise UnusableSAEError(f"is broken: {path.name} holds no JSON object.")
    return content


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors in a `.safetensors`, `.npz` or `.pt` file, by name.

    Raises:
        UnusableSAEError: The file is truncated, or holds something other than named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _read_npz(path) if path.suffix == ".npz" else _read_pt(path)
    except UnusableSAEError:
        raise
    # The errors of numpy, zipfile, torch and safetensors for a truncated file.
    except (
        SafetensorError,
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        why = reason(error).split(". ")[0].rstrip(".")
        raise UnusableSAEError(
            f"is broken: {path.name} cannot be read ({why}): it was cut short or changed, download or save it again."
        ) from error


def matrix(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Return the tensor of a name, which must be a matrix.

    Raises:
        UnusableSAEError: The tensor is missing, or is no matrix.

    Example:
        >>> matrix({"W_enc": torch.zeros(2, 3)}, "W_enc").shape
        torch.Size([2, 3])
    """
    if name not in tensors:
        raise UnusableSAEError(f"is broken: its files hold no {name}, but {', '.join(sorted(tensors)) or 'nothing'}.")
    if tensors[name].ndim != 2:
        raise UnusableSAEError(f"is broken: {name} has the shape {list(tensors[name].shape)}, but must be a matrix.")
    return tensors[name]


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    if not zipfile.is_zipfile(path):  # the error of numpy would recommend pickles
        raise zipfile.BadZipFile("it is not a zip archive")
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MOST_UNPACKED * path.stat().st_size:
        raise UnusableSAEError(
            f"is refused: {path.name} unpacks to {unpacked:,} bytes, more than {MOST_UNPACKED} times its own size: "
            "save it again with numpy.savez or safetensors."
        )
    with np.load(path, allow_pickle=False) as arrays:
        try:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (TypeError, ValueError) as error:  # arrays of objects, of text
            raise UnusableSAEError(_holds_more(path)) from error


def _read_pt(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict. The weights-only unpickler builds tensors and plain containers, and calls nothing else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UnusableSAEError(_holds_more(path)) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UnusableSAEError(_holds_more(path))
    return content


def _holds_more(path: Path) -> str:
    return (
        f"is refused: {path.name} holds something else than named tensors, and unpickling that could run any program: "
        "save its state_dict() alone, best with safetensors.torch.save_file."
    )
