"""Quantised base models: keep their weights packed, in memory and in checkpoints, as transformers does."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig

# Attributes that transformers sets on a quantised model, and looks at when the model is moved, counted or saved.
QUANTIZER = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")


def is_quantized(model: PreTrainedModel) -> bool:
    """Tell if a model's weights are packed."""
    return getattr(model, "hf_quantizer", None) is not None


def keep_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the 4-bit weights of a model, in place, as they were loaded.

    On a CPU with AVX512-BF16, layers of bitsandbytes repack their weights when they first run. From then on, saving or
    copying gives other weights (seen with 0.50: the scales come back transposed).
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False
    return model


def adopt_quantizer(model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    """Copy the attributes of a quantised model to a model that shares its packed weights.

    The second model is then moved and saved like the first one. If the first one is not quantised, nothing is done.

    Args:
        model: The decoder of the loaded model, or a model that contains the loaded model; changed in place.
        loaded: The loaded model.
    """
    if is_quantized(loaded) and model is not loaded:
        for name in QUANTIZER:
            if name in vars(loaded):
                setattr(model, name, vars(loaded)[name])
        model.config.quantization_config = loaded.config.quantization_config


def drop_quantizer(model: PreTrainedModel) -> None:
    """Remove the attributes that loading with a `quantization_config` has set on a model without packed weights."""
    for name in QUANTIZER:
        vars(model).pop(name, None)
    vars(model.config).pop("quantization_config", None)


def quantize_on_loading(config: PretrainedConfig, whole: PretrainedConfig) -> dict[str, Any]:
    """Make the arguments that quantise a base model on loading, as it was quantised in training.

    Args:
        config: The base model's cut configuration in the checkpoint; changed in place.
        whole: The configuration in the base model's own folder.

    Returns:
        Arguments for the base model's `from_pretrained`; empty if its own folder holds packed weights.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None or hasattr(whole, "quantization_config"):
        return {}
    del config.quantization_config  # it would claim that the weights in the folder are packed
    return {
        "quantization_config": AutoQuantizationConfig.from_dict(settings) if isinstance(settings, dict) else settings
    }


def plain_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collect the plain tensors of a state dict; a packed tensor with its own class is replaced by its parts."""
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if flatten := getattr(tensor, "__tensor_flatten__", None):  # torchao's weights have it
            plain |= plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in flatten()[0]})
        else:
            plain[name] = tensor
    return plain
