"""Choose the SAE and the layer for a base model."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PretrainedConfig

from ...runtime import SparseRMError
from .listed_saes import find_saes, middle_sae
from .loaded_sae import LoadedSAE
from .presets import AUTO, PRESETS, SHIPPED_SAE

logger = logging.getLogger(__name__)

# The shape of SmolLM2-135M and its instruction-tuned variants, which no other Llama has.
_SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}


def chosen_sae(sae: str | None, config: PretrainedConfig, name: str) -> str:
    """Return the SAE that a user names; for None or `auto`, the default SAE, which is then named in the log.

    Args:
        sae: Name of an SAE, as for `load_sae`; None or `auto` for the default.
        config: Configuration of the base model before it is cut.
        name: Id of the base model on the Hub, or its folder.

    Raises:
        SparseRMError: There is no default SAE for the base model.
    """
    if sae not in (None, AUTO):
        return sae
    sae = default_sae(config, name)
    logger.info("The SAE for %s is %s: choose another with --sae.", name, sae)
    return sae


def default_sae(config: PretrainedConfig, name: str) -> str:
    """Choose the default SAE of a base model.

    The first of these that exists: the SAE of the base model's preset; the shipped SAE, for a model with the shape of
    SmolLM2-135M; an SAE of the middle layer in sae-lens' registry, for a model on the Hub.

    Args:
        config: Configuration of the base model before it is cut.
        name: Id of the base model on the Hub, or its folder.

    Returns:
        Name of the SAE for `load_sae`.

    Raises:
        SparseRMError: There is no default SAE.

    Example:
        >>> default_sae(PretrainedConfig(), "google/gemma-2-2b-it")
        'gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical'
    """
    for preset in PRESETS.values():
        if preset.model == name:
            return preset.sae
    if all(getattr(config, key, None) == value for key, value in _SMOLLM2_135M.items()):
        return str(SHIPPED_SAE)
    listed = find_saes(name) if name and not Path(name).exists() else []
    if chosen := middle_sae(listed, name, config.num_hidden_layers):
        return chosen.name
    raise SparseRMError(
        f"No SAE is known for the base model {name!r}: name one with --sae (a folder, a repository on the Hub or "
        "an entry of sae-lens' registry such as gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical), or "
        "train one with sparserm sae train."
    )


def matching_layer(sae: LoadedSAE, config: PretrainedConfig, name: str, layer: int | None = None) -> int:
    """Return the layer whose output an SAE encodes, after checking that the base model has it.

    Args:
        sae: SAE.
        config: Configuration of the base model before it is cut.
        name: Name of the base model in errors.
        layer: Layer that the user asks for, counted from 1; by default the layer that the SAE names.

    Returns:
        Layer, counted from 1: the number of decoder layers to keep.

    Raises:
        SparseRMError: The SAE does not fit the base model or the layer.

    Example:
        >>> from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
        >>> sae = LoadedSAE(SparseAutoencoder(d_in=64, d_sae=128), {"hook_name": "blocks.1.hook_resid_post"})
        >>> matching_layer(sae, PretrainedConfig(hidden_size=64, num_hidden_layers=4), "my-base-model")
        2
    """
    d_in, width, depth = sae.autoencoder.d_in, config.hidden_size, config.num_hidden_layers
    if d_in != width:
        raise SparseRMError(
            f"The SAE encodes vectors of width {d_in}, but the residual stream of {name!r} has width {width}: take an "
            "SAE of this base model."
        )
    if layer is None:
        layer = sae.layer
    if layer is None:
        raise SparseRMError("The SAE does not name its layer: name it with --layer.")
    if sae.layer not in (None, layer):
        raise SparseRMError(
            f"--layer {layer} does not fit the SAE, which was trained on {sae.source['hook_name']}, that is layer "
            f"{sae.layer}: leave --layer out or take another SAE."
        )
    if not 1 <= layer <= depth:
        raise SparseRMError(f"Layer {layer} is out of range: {name!r} has layers 1 to {depth}.")
    return layer
