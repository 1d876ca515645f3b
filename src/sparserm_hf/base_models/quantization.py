"""Quantise base models when they are loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from ..modeling.quantized_sparserm import is_quantized
from ..runtime import SparseRMError, without_extra

QUANTIZATIONS = ("none", "bnb-4bit", "bnb-8bit")


def quantized_loading(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the arguments for `from_pretrained` that quantise a base model.

    Args:
        name: One of ``QUANTIZATIONS``. `bnb-4bit` is NF4 (QLoRA, arXiv 2305.14314).
        dtype: Data type that layers compute in, and of all weights that are not quantised.

    Returns:
        The arguments; an empty dictionary for `none`.

    Raises:
        SparseRMError: bitsandbytes is not installed.

    Example:
        >>> quantized_loading("none", torch.bfloat16)
        {}
    """
    if name == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        missing = ModuleNotFoundError(name="bitsandbytes")
        raise without_extra(f"The quantization {name}", missing, "quantization")
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    # LLM.int8 finds outliers in a whole batch, so that a reward would depend on the other texts: threshold 0 is off.
    eight_bit = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    packed = BitsAndBytesConfig(**(four_bit if name == "bnb-4bit" else eight_bit))
    return {"quantization_config": packed, "dtype": dtype}


def check_quantized(model: PreTrainedModel, name: str, dtype: str, quantization: str) -> None:
    """Refuse to quantise a loaded base model, or to run a quantised base model in another data type.

    Args:
        model: The base model.
        name: Name of the base model, for the error.
        dtype: Data type that the user asks for, or `auto`.
        quantization: Quantisation that the user asks for, or `none`.

    Raises:
        SparseRMError: The user asks to quantise a loaded model, or asks for another data type.
    """
    if quantization != "none" and not is_quantized(model):
        raise SparseRMError(
            f"A base model is quantised when it is loaded, but {name!r} was given in memory: pass its name, or "
            "load it with a quantization_config."
        )
    loaded = str(model.dtype).removeprefix("torch.")
    if is_quantized(model) and quantization == "none" and dtype not in ("auto", loaded):
        raise SparseRMError(
            f"The weights of {name!r} are quantised, and run in the type that they were packed for, {loaded}: leave "
            "--dtype out."
        )
