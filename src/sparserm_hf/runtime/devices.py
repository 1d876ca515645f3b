"""Data types that a device computes in, and exact arithmetic on the CPU."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from .errors import SparseRMError
from .private_apis import cpu_multiplies_bfloat16


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU, in float64.

    It goes to the CPU first, because Apple's GPUs raise a TypeError for float64.

    Example:
        >>> exact(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    return tensor.detach().cpu().to(torch.float64)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to an array of float64.

    Example:
        >>> as_numpy(torch.tensor([0.5, 2.0]))
        array([0.5, 2. ])
    """
    return exact(tensor).numpy()


def preferred_dtype(device: torch.device) -> torch.dtype:
    """Choose the data type of a base model: bfloat16 on hardware that multiplies it, else float32.

    Example:
        >>> preferred_dtype(torch.device("mps"))
        torch.float32
    """
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        good = cpu_multiplies_bfloat16()
    else:
        good = False
    return torch.bfloat16 if good else torch.float32


def named_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the data type that the option `dtype` names; `auto` is the preferred type of the device.

    Example:
        >>> named_dtype("bfloat16", torch.device("cpu"))
        torch.bfloat16
    """
    return preferred_dtype(device) if name == "auto" else getattr(torch, name)


def device_name(device: torch.device) -> str:
    """Name the hardware of a device: the model of the GPU or CPU.

    Example:
        >>> device_name(torch.device("mps"))
        'Apple GPU'
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return {"mps": "Apple GPU"}.get(device.type, device.type)
    known = Path("/proc/cpuinfo")  # on Linux, where Python knows only the architecture
    lines = known.read_text().splitlines() if known.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


@contextmanager
def memory_advice(what: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into an error with advice on how to use less memory.

    Args:
        what: The work that runs out of memory, as in `training`.
        advice: How to use less, as in `lower the batch size`.

    Raises:
        SparseRMError: The block ran out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not out_of_memory and "can't allocate memory" not in str(error):  # torch's message on a CPU
            raise
        raise SparseRMError(f"Out of memory while {what}: {advice}. Finished work is kept.") from error
