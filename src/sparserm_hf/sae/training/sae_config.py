"""Settings of an SAE training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...runtime import SparseRMError, option
from ..sinks import SINK_RATIO

ARCHITECTURES = ("batchtopk", "topk", "jumprelu")


@dataclass(frozen=True)
class SAETrainingConfig:
    """Settings of an SAE training. Each option is described in its `help`; the shipped SAE has the defaults.

    Raises:
        SparseRMError: A value is out of range.

    Example:
        >>> SAETrainingConfig(total_tokens=1_000_000, k=16).steps
        488
    """

    architecture: Literal["batchtopk", "topk", "jumprelu"] = option(
        "batchtopk",
        "Activation function; a batchtopk SAE is saved as jumprelu, so that its latents do not depend on a batch.",
    )
    d_sae: int | None = option(None, "Number of latents; by default 8 times the width of the residual stream.")
    k: int = option(
        32,
        "Number of latents that fire on a token: exactly (topk), on average (batchtopk), or on average as a target "
        "(jumprelu).",
    )
    total_tokens: int = option(3_000_000, "Number of tokens to train on; texts with fewer tokens are repeated.")
    step_tokens: int = option(2048, "Number of tokens in an optimiser step.")
    learning_rate: float = option(
        8e-4, "Learning rate, warmed up over the first twentieth of the steps and decayed over the last third."
    )
    buffer_tokens: int = option(
        150_000, "Number of tokens held in memory and shuffled, so that each step has tokens of many texts."
    )
    sink_ratio: float = option(
        SINK_RATIO, "Leave out attention sinks: tokens whose norm is above this many times the median norm."
    )
    checkpoint_seconds: float = option(
        120.0, "Minimum time between two checkpoints, in seconds; a checkpoint is written after a buffer is used up."
    )
    seed: int = option(0, "Seed of the random numbers.")

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise SparseRMError(
                f"architecture is {self.architecture!r}, but must be one of {', '.join(ARCHITECTURES)}."
            )
        if self.k < 1 or (self.d_sae is not None and self.d_sae < self.k):
            raise SparseRMError(f"k is {self.k}, but must be between 1 and the number of latents, {self.d_sae}.")
        if not 2 <= self.step_tokens <= self.buffer_tokens:
            raise SparseRMError(
                f"step_tokens is {self.step_tokens}, but must be between 2 and buffer_tokens = {self.buffer_tokens}."
            )
        if self.total_tokens < self.step_tokens:
            raise SparseRMError(
                f"total_tokens is {self.total_tokens}, but must be at least step_tokens = {self.step_tokens}."
            )
        if not self.learning_rate > 0 or not self.sink_ratio > 1:
            raise SparseRMError(
                f"learning_rate must be above 0 and sink_ratio above 1, but they are {self.learning_rate} and "
                f"{self.sink_ratio}."
            )

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.total_tokens // self.step_tokens
