"""What happens to an input before an SAE sees it, moved into the SAE's weights."""

from __future__ import annotations

import torch

from .formats import ParsedSAE
from .weight_files import UnusableSAEError


def folded_weights(parsed: ParsedSAE) -> dict[str, torch.Tensor]:
    """The weights of an SAE, in float32, that takes x as it is; activations and thresholds stay what they are.

    `input_scale` s: W_enc * s, W_dec / s, b_dec / s. `centred`: x - mean(x) is x times a projection, which goes into
    W_enc; b_dec, taken off after it, does not go through it. The reconstruction stays centred.

    Raises:
        UnusableSAEError: The encoder is none that this can be folded into.
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
