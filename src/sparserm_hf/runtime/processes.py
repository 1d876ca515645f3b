"""Which process this is among those that accelerate, torchrun or mpirun started."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

# Processes wait for the slowest one, which may be a shard behind; the defaults are ten and thirty minutes.
PATIENCE = timedelta(days=1)


def process_state() -> PartialState:
    """The state of this process; the first call sets up the communication between all.

    accelerate does not look for other processes on a machine without an accelerator unless it is told to.
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
