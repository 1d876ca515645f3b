"""Fold scaling and centring of an SAE's input into its weights."""

from __future__ import annotations

import torch

from .formats import ParsedSAE
from .weight_files import UnusableSAEError


def folded_weights(parsed: ParsedSAE) -> dict[str, torch.Tensor]:
    """Compute float32 weights that give the same activations for x as the given weights for the scaled, centred x.

    For a scale s: W_enc * s, W_dec / s, b_dec / s. For `centred`: x - mean(x) is a projection of x, which is folded
    into W_enc; b_dec is subtracted after the projection, so b_enc changes too. The reconstruction stays centred.

    Args:
        parsed: SAE with `input_scale` and `centred`.

    Raises:
        UnusableSAEError: The centring cannot be folded into this architecture or normalisation.

    Example:
        >>> eye = {"W_enc": torch.eye(2), "W_dec": torch.eye(2), "b_dec": torch.zeros(2)}
        >>> folded_weights(ParsedSAE("standard", eye, 2, 2, input_scale=2.0))["W_dec"]
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    weights = {name: tensor.detach().float() for name, tensor in parsed.weights.items()}
    if parsed.input_scale != 1.0:
        weights["W_enc"] = weights["W_enc"] * parsed.input_scale
        weights["W_dec"] = weights["W_dec"] / parsed.input_scale
        weights["b_dec"] = weights["b_dec"] / parsed.input_scale
    if parsed.centred:
        if parsed.normalization != "none" or "b_enc" not in weights:
            raise UnusableSAEError(
                "was trained on a residual stream less its mean (center_writing_weights of TransformerLens), which "
                f"cannot be folded into a {parsed.architecture} SAE with the normalisation {parsed.normalization}."
            )
        w_enc = weights["W_enc"]
        weights["W_enc"] = w_enc - w_enc.mean(dim=0)
        if parsed.apply_b_dec_to_input:
            weights["b_enc"] = weights["b_enc"] - weights["b_dec"].mean() * w_enc.sum(dim=0)
    return {name: tensor.contiguous() for name, tensor in weights.items()}
