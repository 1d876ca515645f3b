"""Load a base model and its tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.backbone_sparserm import decoder_of
from ..modeling.fields_sparserm import check_base_fields
from ..modeling.slim_sparserm import load_causal_lm
from ..runtime import SparseRMError, loading, shown
from .quantization import quantized_loading


def load_language_model(
    name: str, revision: str | None = None, quantization: str = "none", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a whole base model, with its language modelling head.

    Args:
        name: Hub id or folder.
        revision: Revision on the Hub.
        quantization: Quantisation on loading: one of ``QUANTIZATIONS``.
        dtype: Data type of a quantised model; any other model is loaded in the type of its files.

    Raises:
        SparseRMError: The model cannot be found or loaded.

    Example:
        ```python
        from sparserm_hf.base_models import load_language_model

        print(load_language_model("my-base-model").get_output_embeddings())
        ```
    """
    config = Path(name) / "config.json"
    if Path(name).exists() and not config.is_file():
        if (config.parent / "adapter_config.json").is_file():
            raise SparseRMError(
                f"{name!r} is an adapter: merge it into its base model, with peft's AutoPeftModelForCausalLM and "
                "merge_and_unload(), and save that."
            )
        raise SparseRMError(f"{name!r} is not a model folder: it has no config.json.")
    how = quantized_loading(quantization, dtype) or {"dtype": "auto"}
    with loading(f"The base model {name!r}"):
        check_base_fields(PretrainedConfig.get_config_dict(name, revision=revision)[0], "its configuration")
        return load_causal_lm(name, revision=revision, **how)


def load_base_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """Load a base model without its language modelling head; see `load_language_model`.

    Example:
        ```python
        from sparserm_hf.base_models import load_base_model

        print(load_base_model("my-base-model").config.num_hidden_layers)
        ```
    """
    return decoder_of(load_language_model(name, revision))


def longest_text(config: PretrainedConfig, max_length: int) -> int:
    """Limit the length of a text to the positions of the base model.

    Args:
        config: Configuration of the base model.
        max_length: Length limit in tokens that the user asks for.

    Returns:
        The smaller limit, in tokens.

    Example:
        >>> from transformers import LlamaConfig
        >>> longest_text(LlamaConfig(max_position_embeddings=1024), 2048)
        1024
    """
    return int(min(max_length, getattr(config, "max_position_embeddings", None) or sys.maxsize))


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model.

    Args:
        name: Hub id or folder.
        revision: Revision on the Hub.

    Raises:
        SparseRMError: The tokenizer cannot be found or loaded.

    Example:
        ```python
        from sparserm_hf.base_models import load_tokenizer

        print(load_tokenizer("my-base-model").chat_template)
        ```
    """
    with loading(f"The tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_tokenizer(tokenizer)
        return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the types of a tokenizer's fields, which transformers does not do.

    Raises:
        ValueError: A field has a wrong type.
    """
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
        raise ValueError(f"its model_max_length is {shown(longest)}, but must be a number above 0")
    names = tokenizer.model_input_names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its model_input_names is {shown(names)}, but must be a list of strings")
    if not isinstance(tokenizer.chat_template, (str, dict, type(None))):
        raise ValueError(f"its chat_template is {shown(tokenizer.chat_template)}, but must be a string")
    _ = tokenizer.unk_token_id  # fails here, not later: an unknown token that is itself unknown is looked up for ever
