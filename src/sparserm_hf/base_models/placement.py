"""The device and the data type of a model."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ..modeling.quantized_sparserm import is_quantized

Model = TypeVar("Model", bound=PreTrainedModel)


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model's parameters, in place.

    Not `model.to(dtype)`: that rounds the frequencies of the rotary embedding too, which `from_pretrained(dtype=...)`
    leaves in float32, and so the saved model would score otherwise than the one that was trained. A quantised model
    stays as it is.
    """
    if is_quantized(model):
        return model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def move(model: Model, device: torch.device) -> Model:
    """Move a model to a device, in place, if it is not there: transformers 4 refuses to move 8-bit weights at all."""
    there = torch.empty(0, device=device).device  # with a number where `device` has none
    if any(tensor.device != there for tensor in (*model.parameters(), *model.buffers())):
        model.to(device)  # type: ignore[arg-type]
    return model


def saved_dtype(model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """Type of a base model's weights in a checkpoint, where it runs in `dtype`.

    They are saved as they run, but a 16-bit model that runs in float32 goes back to 16 bits without loss, and a
    quantised one stays as it was loaded.
    """
    as_loaded = is_quantized(model) or (dtype == torch.float32 and model.dtype.itemsize == 2)
    return model.dtype if as_loaded else dtype
