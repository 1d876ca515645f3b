"""What happens to an input before an SAE sees it, moved into the SAE's weights."""

from __future__ import annotations

from dataclasses import replace

from .files import UnusableSAEError
from .readers import Reading


def fold_input_scale(reading: Reading, scale: float) -> Reading:
    """An SAE that reads x, made of one that reads scale * x and writes scale times what it reconstructs.

    Activations stay as they are, and with them thresholds; only those multiplied by the decoder's norm shrink.
    """
    weights = dict(reading.weights)
    weights["W_enc"] = weights["W_enc"].float() * scale
    weights["W_dec"] = weights["W_dec"].float() / scale
    weights["b_dec"] = weights["b_dec"].float() / scale
    return replace(reading, weights=weights, normalization="none")


def fold_centring(reading: Reading) -> Reading:
    """An SAE that reads x, made of one that reads x less its mean over the d_in numbers; what it writes is centred.

    Raises:
        UnusableSAEError: Its encoder is none that this can be folded into.
    """
    if reading.normalization != "none" or "b_enc" not in reading.weights:
        raise UnusableSAEError(
            "was trained on a residual stream less its mean (center_writing_weights of TransformerLens), which cannot "
            f"be folded into a {reading.architecture} SAE with {reading.normalization} normalisation."
        )
    weights = dict(reading.weights)
    w_enc, b_dec = weights["W_enc"].float(), weights["b_dec"].float()
    weights["W_enc"] = w_enc - w_enc.mean(dim=0)
    if reading.apply_b_dec_to_input:  # which is taken off after the mean
        weights["b_enc"] = weights["b_enc"].float() - b_dec.mean() * w_enc.sum(dim=0)
    return replace(reading, weights=weights, centred=False)
