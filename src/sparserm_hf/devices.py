"""From a device to exact arithmetic."""

from __future__ import annotations

import numpy as np
import torch


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU, in float64.

    The CPU first: Apple's GPUs have no float64, and raise a TypeError where it is asked for.
    """
    return tensor.detach().cpu().to(torch.float64)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to a float64 array."""
    return exact(tensor).numpy()
