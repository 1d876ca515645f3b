"""Pool a text's residual stream to one vector: mark the pooled tokens, normalise them, and average them."""

from collections.abc import Sequence

import torch


def pooled_tokens(attention_mask: torch.Tensor, responses: Sequence[tuple[int, int]], pooling: str) -> torch.Tensor:
    """Mark the pooled tokens of each text, as (B, T) bool.

    The first attended token is never pooled: it is the attention sink, whose norm is over a hundred times that of
    other tokens, and it says nothing about the text. Tokens after the response are not pooled either. A text without a
    response has no pooled tokens.

    Args:
        attention_mask: (B, T), nonzero for attended tokens.
        responses: Place of the response in each text, see `find_responses`.
        pooling: One of ``fields_sparserm.POOLINGS``.
    """
    places = torch.tensor(responses, device=attention_mask.device).reshape(len(attention_mask), 2, 1)
    starts, stops = places.unbind(1)  # (B, 1) each
    first = {"response_mean": starts, "mean": torch.zeros_like(starts), "last": stops - 1}[pooling]
    attended = attention_mask.bool()
    place = attended.cumsum(1) - 1  # (B, T), padding not counted
    return attended & (place >= first.clamp(min=1)) & (place < stops) & (starts < stops)


def root_mean_square(tokens: torch.Tensor) -> torch.Tensor:
    """Compute the root mean square of each token, (..., d_model) to (...), at least 1e-6."""
    return tokens.pow(2).mean(-1).sqrt().clamp(min=1e-6)


def normalised_tokens(hidden: torch.Tensor, where: torch.Tensor, norm: str) -> torch.Tensor:
    """Normalise the pooled tokens in float32, (B, T, d_model); all others are zero.

    Args:
        hidden: (B, T, d_model) residual streams.
        where: (B, T) bool, true for the pooled tokens.
        norm: `rms` divides each token by its root mean square, so that an attention sink inside a text gets the size
            of any other token; `none` does not.
    """
    # A mask, not a multiplication by zero: a padded position may hold an infinity.
    tokens = torch.where(where.unsqueeze(-1), hidden, 0.0).float()
    return tokens / root_mean_square(tokens).unsqueeze(-1) if norm == "rms" else tokens


def pool_representations(hidden: torch.Tensor, pooled: torch.Tensor, norm: str) -> torch.Tensor:
    """Average the pooled tokens, in float32.

    Args:
        hidden: (B, T, d_model) residual streams.
        pooled: (B, T) bool, true for the pooled tokens.
        norm: See `normalised_tokens`.

    Returns:
        (B, d_model) averages; zero for a text without pooled tokens.
    """
    tokens = normalised_tokens(hidden, pooled, norm)
    weight = pooled.float()  # (B, T)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1.0)
    return (weight.unsqueeze(1) @ tokens).squeeze(1)
