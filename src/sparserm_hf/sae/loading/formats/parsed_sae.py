"""Common form of SAEs of all formats."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class ParsedSAE:
    """Contents of an SAE's files, in the terms of `SparseAutoencoder`.

    Attributes:
        architecture: The architecture that the files name; `load_sae` decides if it can be embedded.
        weights: The tensors under the names and in the shapes that `SparseAutoencoder` gives them.
        d_in: Width of the residual stream.
        d_sae: Number of latents.
        k: Latents that may fire on one token, for the architecture `topk`.
        normalization: Normalisation of an input before it is encoded.
        input_scale: Factor on an input before the normalisation; a reconstruction is divided by it.
        apply_b_dec_to_input: True if the decoder bias is subtracted from the input before it is encoded.
        rescale_acts_by_decoder_norm: True if activations are multiplied by the norms of their decoder rows before
            the largest are selected.
        centred: True if the SAE was trained on the residual stream minus its mean, an option of TransformerLens.
        source: Origin of the SAE: format, hook_name, model_name and more.
    """

    architecture: str
    weights: dict[str, torch.Tensor]
    d_in: int
    d_sae: int
    k: int | None = None
    normalization: str = "none"
    input_scale: float = 1.0
    apply_b_dec_to_input: bool = False
    rescale_acts_by_decoder_norm: bool = False
    centred: bool = False
    source: dict[str, Any] = field(default_factory=dict)


def module_hook(module: str) -> str | None:
    """Name the hook at the output of a module of a transformers model: `layers.5` or `model.layers.5.mlp`.

    Example:
        >>> module_hook("model.layers.5")
        'blocks.5.hook_resid_post'
    """
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?", module)
    if not match:
        return None
    return f"blocks.{match[1]}.{match[2] or 'hook_resid_post'}"
