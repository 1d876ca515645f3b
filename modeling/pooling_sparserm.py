"""Pool the residual stream of a text to one vector."""

import torch


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
