"""Pooling of a text's residual stream to one vector: the tokens that are pooled, and their mean."""

from collections.abc import Sequence

import torch


def pooled_tokens(attention_mask: torch.Tensor, responses: Sequence[tuple[int, int]], pooling: str) -> torch.Tensor:
    """Mark the pooled tokens of each text, as (B, T) bool.

    The first attended token is the attention sink: its norm is over a hundred times that of the others and it says
    nothing about the text, so it is never pooled. What follows the response is not pooled either, and of a text
    without a response nothing is.

    Args:
        attention_mask: (B, T), nonzero where a token is attended.
        responses: For each text, what `find_responses` returns.
        pooling: One of ``fields_sparserm.POOLINGS``.
    """
    pooled = torch.zeros_like(attention_mask, dtype=torch.bool)
    for row, mask, (start, stop) in zip(pooled, attention_mask, responses, strict=True):
        if start < stop:
            first = {"response_mean": start, "mean": 0, "last": stop - 1}[pooling]
            row[mask.nonzero()[max(first, 1) : stop, 0]] = True
    return pooled


def root_mean_square(tokens: torch.Tensor) -> torch.Tensor:
    """Compute the root mean square of each token, (..., d_model) to (...); it is never zero."""
    return tokens.pow(2).mean(-1).sqrt().clamp(min=1e-6)


def normalised_tokens(hidden: torch.Tensor, where: torch.Tensor, norm: str) -> torch.Tensor:
    """Normalise the pooled tokens in float32, (B, T, d_model); all others are zero.

    Args:
        hidden: (B, T, d_model) residual streams.
        where: (B, T) bool: the tokens.
        norm: With `rms`, each token is divided by its root mean square, which takes the attention sinks inside a text
            down to the size of any other token.
    """
    # Masked, not multiplied by zero: a padded position may hold an infinity.
    tokens = torch.where(where.unsqueeze(-1), hidden, 0.0).float()
    return tokens / root_mean_square(tokens).unsqueeze(-1) if norm == "rms" else tokens


def pool_representations(hidden: torch.Tensor, pooled: torch.Tensor, norm: str) -> torch.Tensor:
    """Average the pooled tokens, in float32: (B, T, d_model) and (B, T) bool to (B, d_model), zero without any."""
    tokens = normalised_tokens(hidden, pooled, norm)
    weight = pooled.float()  # (B, T)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1.0)
    return (weight.unsqueeze(1) @ tokens).squeeze(1)
