"""Attention sinks: tokens of an enormous norm, which would be nearly all of the variance that an SAE explains."""

from __future__ import annotations

import torch

SINK_RATIO = 3.0  # tokens above this many times the median norm are attention sinks


def ordinary_tokens(norms: torch.Tensor, ratio: float = SINK_RATIO) -> torch.Tensor:
    """Mark the tokens that are no attention sinks.

    Args:
        norms: (n,) norms of tokens.
        ratio: Multiple of the median norm above which a token is a sink.

    Returns:
        (n,) bool.

    Example:
        >>> ordinary_tokens(torch.tensor([1.0, 2.0, 9.0]))
        tensor([ True,  True, False])
    """
    return norms <= ratio * norms.median()
