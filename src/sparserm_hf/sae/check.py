"""Check an SAE on the texts of a dataset: `check_sae`, the call behind `sparserm sae check`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import cast_weights, load_language_model, load_tokenizer, longest_text, unpacked
from ..conversations import MIN_LENGTH, load_texts, prepare_tokenizer
from ..modeling.backbone_sparserm import use_exact_attention
from ..runtime import SparseRMError, named_dtype, process_state
from .fit import MIN_TOKENS
from .loading.choosing import chosen_sae, matching_layer
from .loading.loaded_sae import load_sae
from .measuring import SAECheck, measure_sae


def check_sae(
    model: str,
    sae: str,
    dataset: str,
    dataset_split: str = "train",
    dataset_config: str | None = None,
    layer: int | None = None,
    dtype: str = "auto",
    max_tokens: int = 4096,
    max_length: int = 256,
    revision: str | None = None,
) -> SAECheck:
    """Check if an SAE fits a base model, a layer and the texts of a dataset.

    Args:
        model: Base model: a Hub id, a folder, or a GGUF file.
        sae: Name of the SAE, as for `load_sae`; `auto` chooses the default SAE of the base model.
        dataset: Texts: a file or a Hub id.
        dataset_split: Split of the dataset, or a slice such as `train[:1000]`.
        dataset_config: Configuration of a dataset on the Hub.
        layer: Layer whose output the SAE encodes, counted from 1; by default the layer that the SAE names.
        dtype: Data type of the base model: `auto`, `bfloat16` or `float32`.
        max_tokens: Number of tokens to measure on.
        max_length: Maximum number of tokens of a text.
        revision: Revision of the base model on the Hub.

    Raises:
        SparseRMError: The base model, the SAE or the texts cannot be loaded, or there are too few tokens.

    Example:
        ```python
        from sparserm_hf import check_sae

        check = check_sae("my-base-model", "my-sae", "my-texts.jsonl")
        print(check.verdict.sentence)
        ```
    """
    _check_limits(max_tokens, max_length)
    name = unpacked(model)
    base = load_language_model(name, revision)
    config = base.config.get_text_config()
    loaded = load_sae(chosen_sae(sae, config, name))
    layer = matching_layer(loaded, config, name, layer)
    tokenizer = prepare_tokenizer(load_tokenizer(name, revision))
    length = longest_text(config, max_length)
    texts = load_texts(dataset, tokenizer, max_tokens, length, dataset_split, dataset_config)
    _check_vocabulary(texts, base, tokenizer, name)
    base = _prepared(base, dtype)
    loaded.autoencoder.to(base.device)
    return measure_sae(base, loaded, layer, texts, tokenizer, name)


def _prepared(base: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """Put a base model on this process's device, in eval mode, with the data type and with exact attention."""
    device = process_state().device
    return use_exact_attention(cast_weights(base.to(device), named_dtype(dtype, device)).eval())  # type: ignore[arg-type]


def _check_limits(max_tokens: int, max_length: int) -> None:
    for name, given, least in (("max_tokens", max_tokens, MIN_TOKENS), ("max_length", max_length, MIN_LENGTH)):
        if given < least:
            raise SparseRMError(f"{name} is {given}, but must be at least {least}.")


def _check_vocabulary(
    texts: list[list[int]], base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    known: Any = base.get_input_embeddings().num_embeddings
    bos = tokenizer.bos_token_id
    largest = max(bos if isinstance(bos, int) else 0, *map(max, texts))
    if largest >= known:
        raise SparseRMError(f"A text has the token {largest}, but {name!r} has {known} tokens: use its tokenizer.")
