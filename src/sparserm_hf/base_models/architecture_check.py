"""Check that an architecture can be cut, by running a few tokens before and after the cut."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from ..modeling.backbone_sparserm import check_layer, decoder_layers, residual_stream, use_exact_attention
from ..modeling.quantized_sparserm import is_quantized
from ..runtime import SparseRMError, reason

PROBE = 4  # tokens of a probe


def check_kind(decoder: PreTrainedModel) -> None:
    """Refuse a decoder that is not a causal language model.

    Args:
        decoder: The whole decoder.

    Raises:
        SparseRMError: The decoder belongs to an encoder-decoder model, or its tokens depend on later ones.
        ValueError: The decoder's layers are not found.
    """
    kind, fields = type(decoder).__name__, inspect.signature(type(decoder.config)).parameters
    if "is_encoder_decoder" in fields and fields["is_encoder_decoder"].default is True:
        raise SparseRMError(f"{kind} is half of an encoder-decoder model, but SparseRM needs a causal language model.")
    try:
        decoder_layers(decoder)
    except ValueError:
        check_causal(decoder, run_probe(decoder))  # the error of `check_causal` says more
        raise


def check_causal(decoder: PreTrainedModel, stream: torch.Tensor) -> None:
    """Refuse a decoder whose tokens depend on later tokens.

    Args:
        decoder: The decoder, cut or whole.
        stream: (1, T, d_model) output of `run_probe`.

    Raises:
        SparseRMError: A token depends on a later one.
    """
    one, other = stream[0, :-1].float(), run_probe(decoder, last=PROBE)[0, :-1].float()
    apart = (one - other).norm(dim=-1) / one.norm(dim=-1)
    # Rounding depends on the other tokens where a model has experts or weights in 8 bits.
    rounding = 2**-8 if is_quantized(decoder) else torch.finfo(decoder.dtype).eps
    if (apart > rounding**0.5).any():
        raise SparseRMError(
            f"{type(decoder).__name__} attends in both directions, as BERT does, but SparseRM needs a causal "
            "language model, in which no token depends on later ones."
        )


def stream_of_probe(decoder: PreTrainedModel, layer: int) -> torch.Tensor:
    """Run a few tokens through a whole decoder, and return the residual stream after one of its layers.

    Args:
        decoder: The whole decoder.
        layer: Number of that layer, counted from 1.

    Returns:
        (1, T, d_model) residual stream after `layer` layers.

    Raises:
        ValueError: The layers are not found, or `layer` is out of range or only for images.
    """
    layers, seen = decoder_layers(use_exact_attention(decoder)), []
    check_layer(layer, len(layers))
    hook = layers[layer - 1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        run_probe(decoder)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"Layer {layer} of {type(decoder).__name__} is only for images: take a neighbouring layer.")
    return seen[-1] if torch.is_tensor(seen[-1]) else seen[-1][0]


@torch.no_grad()
def run_probe(decoder: PreTrainedModel, last: int = PROBE - 1) -> torch.Tensor:
    """Run a few tokens through a decoder, in eval mode.

    Args:
        decoder: The decoder, cut or whole.
        last: Id of the last token.

    Returns:
        (1, T, d_model) output of the decoder.
    """
    ids = torch.tensor([[*range(PROBE - 1), last]], device=decoder.device) % decoder.config.vocab_size
    return residual_stream(decoder.eval(), ids, torch.ones_like(ids))


def check_backbone(decoder: PreTrainedModel, expected: torch.Tensor) -> None:
    """Refuse a cut decoder whose output is not the residual stream.

    Args:
        decoder: The cut decoder.
        expected: Output of `stream_of_probe` before the cut.

    Raises:
        SparseRMError: The output differs or depends on later tokens, or the decoder does not run.
    """
    kind = type(decoder).__name__
    try:
        stream = run_probe(decoder)
    except Exception as error:  # an architecture may raise anything with fewer layers
        raise SparseRMError(f"{kind} cannot be cut: it then does not run ({reason(error)}).") from error
    alike = stream.shape == expected.shape and torch.allclose(stream, expected, rtol=0, atol=0, equal_nan=True)
    if expected.ndim != 3:
        raise SparseRMError(f"{kind} has more than one residual stream a token, but an SAE encodes one.")
    if not alike:
        raise SparseRMError(f"{kind} cannot be cut: its output is then not the residual stream of its last layer.")
    check_causal(decoder, stream)
