"""Quantised base models: their weights stay packed, and are saved and loaded as transformers saves and loads them."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig

# What transformers sets on a model that it has loaded quantised, and asks for when it is moved, counted or saved.
QUANTIZER = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")


def is_quantized(model: PreTrainedModel) -> bool:
    """Tell if a model's weights are packed."""
    return getattr(model, "hf_quantizer", None) is not None


def keep_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Keep 4-bit weights, in place, as they were loaded.

    On a CPU with AVX512-BF16 the layers of bitsandbytes repack them when they are first run; what is saved or copied
    from then on are other weights (seen with 0.50: the scales come back transposed).
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False
    return model


def adopt_quantizer(model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    """Make a model, in place, that shares the packed weights of a loaded one be moved and saved as that one is.

    Args:
        model: The loaded model's decoder, or a model that the loaded one is a part of.
        loaded: Quantised or not; where it is not, nothing is done.
    """
    if is_quantized(loaded) and model is not loaded:
        for name in QUANTIZER:
            if name in vars(loaded):
                setattr(model, name, vars(loaded)[name])
        model.config.quantization_config = loaded.config.quantization_config


def drop_quantizer(model: PreTrainedModel) -> None:
    """Undo what loading with a `quantization_config` has set on a model without weights to pack."""
    for name in QUANTIZER:
        vars(model).pop(name, None)
    vars(model.config).pop("quantization_config", None)


def quantize_on_loading(config: PretrainedConfig, whole: PretrainedConfig) -> dict[str, Any]:
    """Make a base model load quantised as it was in training.

    Args:
        config: The base model's configuration in the checkpoint, cut; changed in place.
        whole: The configuration in the base model's own folder.

    Returns:
        Arguments for the base model's `from_pretrained`: none where its own folder says how it is packed.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None or hasattr(whole, "quantization_config"):
        return {}
    del config.quantization_config  # there it would say that the weights in the folder are packed already
    return {
        "quantization_config": AutoQuantizationConfig.from_dict(settings) if isinstance(settings, dict) else settings
    }


def plain_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collect the tensors of a state dict; a packed tensor of a class of its own is replaced by its parts."""
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if flatten := getattr(tensor, "__tensor_flatten__", None):  # as the weights of torchao have
            plain |= plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in flatten()[0]})
        else:
            plain[name] = tensor
    return plain
