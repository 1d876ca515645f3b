"""vLLM's settings for a reward model: the sizes of its base model, and the defaults that its pooling needs."""

from __future__ import annotations

import logging
from typing import Any

import torch
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from ..runtime import SparseRMError
from .vllm_plugin import MODE

logger = logging.getLogger(__name__)

# vLLM's class for each type of base model. In all of them the residual stream is the sum of two tensors, which the
# final norm adds up.
BASE_CLASSES = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def check_served(config: Any) -> None:
    """Refuse a reward model that vLLM cannot serve.

    Args:
        config: The reward model's `SparseRMConfig`.

    Raises:
        SparseRMError: The checkpoint is slim or quantised, has a gate, or its base model is not of a supported type.
    """
    base, known = config.base_config, ", ".join(BASE_CLASSES)
    reasons = {
        "it is slim, and vLLM reads the base model from the same folder; train it without --slim": config.slim,
        "its weights are quantised; train it without --quantization": hasattr(base, "quantization_config"),
        "it has a gate, which reads the prompt; combine its models without --gate": config.gate,
        f"its base model is of the type {base.model_type}, but must be one of {known}": base.model_type
        not in BASE_CLASSES,
    }
    if wrong := [reason for reason, applies in reasons.items() if applies]:
        raise SparseRMError(
            f"vLLM cannot serve this reward model: {'; '.join(wrong)}. `sparserm serve` serves every reward model."
        )


def trained_dtype(config: Any) -> torch.dtype:
    """Return the data type that the base model ran in during training, or else the data type of its saved weights."""
    return getattr(torch, config.run_dtype) if config.run_dtype else config.dtype


class RewardModelArchitecture(ModelArchConfigConvertorBase):
    """The sizes of the cut base model, by which vLLM plans memory and attention."""

    def __init__(self, hf_config: Any, hf_text_config: Any, revision: str | None = None):
        super().__init__(hf_config, hf_config.base_config, revision)
        # vLLM makes this object before it chooses a data type, and chooses by this field.
        hf_config.dtype = trained_dtype(hf_config)


class RewardModelSettings(VerifyAndUpdateConfig):
    """The settings of vLLM that a reward model needs."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Set the text configuration, the data type, the tokenisation and the task, in place.

        Raises:
            SparseRMError: See `check_served`.
        """
        check_served(model_config.hf_config)
        model_config.hf_text_config = model_config.hf_config.base_config
        if model_config.dtype == torch.float16:
            # By default vLLM runs a float32 model in float16, in which the largest activations overflow.
            model_config.dtype = trained_dtype(model_config.hf_config)
        model_config.tokenizer_mode = MODE
        if model_config.pooler_config is not None and model_config.pooler_config.task is None:
            model_config.pooler_config.task = "classify"

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Turn prefix caching off, in place: a reward needs the hidden states of all tokens, which the cache lacks."""
        if vllm_config.cache_config.enable_prefix_caching:
            logger.info("Prefix caching is off: a reward needs the states of all tokens of the response.")
            vllm_config.cache_config.enable_prefix_caching = False
