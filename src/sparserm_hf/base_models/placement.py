"""The device and the data type of a model."""

from __future__ import annotations

from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ..modeling.quantized_sparserm import is_quantized

Model = TypeVar("Model", bound=PreTrainedModel)


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast the parameters of a model, in place; a quantised model stays as it is.

    Unlike `model.to(dtype)`, this leaves the frequencies of the rotary embedding in float32, as
    `from_pretrained(dtype=...)` does. Otherwise the saved model would give other rewards than the trained one.
    """
    if is_quantized(model):
        return model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def move(model: Model, device: torch.device | str) -> Model:
    """Move a model to a device, in place.

    A model that is there already is left alone, because transformers 4 refuses to move 8-bit weights at all.
    """
    there = torch.empty(0, device=device).device  # with an index, which `device` may lack
    if any(tensor.device != there for tensor in (*model.parameters(), *model.buffers())):
        model.to(device)  # type: ignore[arg-type]
    return model


def saved_dtype(model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """Choose the data type of a base model's weights in a checkpoint.

    Weights are saved in the type that they run in, with two exceptions: a 16-bit model that runs in float32 goes back
    to 16 bits without loss, and a quantised model is saved as it was loaded.

    Args:
        model: The base model as it was loaded.
        dtype: Type that it runs in.
    """
    as_loaded = is_quantized(model) or (dtype == torch.float32 and model.dtype.itemsize == 2)
    return model.dtype if as_loaded else dtype
