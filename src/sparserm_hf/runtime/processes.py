"""The processes that accelerate, torchrun or mpirun started."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

# Processes wait for the slowest one, which may be a whole shard behind. The defaults are ten and thirty minutes.
PATIENCE = timedelta(days=1)


def process_state() -> PartialState:
    """Return the state of this process: its number, its device and the number of processes.

    The first call sets up communication between the processes. On a machine without an accelerator, accelerate looks
    for other processes only if `cpu` is set.

    Example:
        >>> process_state().num_processes
        1
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
