"""From a device to exact arithmetic."""

from __future__ import annotations

import numpy as np
import torch

from .private_apis import cpu_multiplies_bfloat16


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU, in float64.

    The CPU first: Apple's GPUs have no float64, and raise a TypeError where it is asked for.
    """
    return tensor.detach().cpu().to(torch.float64)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to a float64 array."""
    return exact(tensor).numpy()


def preferred_dtype(device: torch.device) -> torch.dtype:
    """The type a base model runs fastest in without harm: bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        good = cpu_multiplies_bfloat16()
    else:
        good = False
    return torch.bfloat16 if good else torch.float32


def named_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that the option `dtype` names: `auto` is the preferred one."""
    return preferred_dtype(device) if name == "auto" else getattr(torch, name)
