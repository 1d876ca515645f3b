"""Cut a base model after one of its layers."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..modeling.backbone_sparserm import backbone_from_config, cut_base_model, decoder_of
from ..modeling.quantized_sparserm import keep_packing
from ..modeling.slim_sparserm import has_adapter
from ..runtime import SparseRMError, reason
from .architecture_check import check_backbone, check_kind, stream_of_probe
from .placement import cast_weights, move


def prepare_base_model(
    model: PreTrainedModel, layer: int, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Cut a base model after a layer, move it to its device and type, and freeze it, all in place.

    Args:
        model: The whole base model, with or without its language modelling head.
        layer: Number of layers to keep.
        device: Device to run on.
        dtype: Data type to run in. A quantised model keeps its own.

    Returns:
        The cut decoder. Its output is the residual stream after `layer` layers.

    Raises:
        SparseRMError: The model has no such layer, is of an unknown architecture, or carries an adapter.

    Example:
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(
        ...     vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
        ... )
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> len(prepare_base_model(model, 2, torch.device("cpu"), torch.float32).layers)
        2
    """
    if has_adapter(model):
        raise SparseRMError("The base model carries an adapter of PEFT: call merge_and_unload() first.")
    try:
        check_kind(decoder_of(keep_packing(model)))
        expected = stream_of_probe(decoder_of(model), layer)
        model = cut_base_model(model, layer)
    except ValueError as error:
        raise SparseRMError(str(error)) from error
    except Exception as error:  # an architecture may raise anything when it is run or cut
        raise SparseRMError(f"{type(model).__name__} cannot be cut ({reason(error)}).") from error
    check_backbone(model, expected)
    return cast_weights(move(model, device), dtype).eval().requires_grad_(False)


def count_parameters(config: PretrainedConfig) -> int:
    """Count the parameters of a cut base model from its configuration, as if no weight were quantised."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in backbone_from_config(config).parameters())
