"""Which SAE belongs to a base model, and at which layer."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PretrainedConfig

from ...runtime import SparseRMError
from .loaded_sae import LoadedSAE
from .presets import AUTO, PRESETS, SHIPPED_SAE
from .registry import find_saes, middle_sae

logger = logging.getLogger(__name__)

# What tells SmolLM2-135M and its instruction-tuned kin from every other Llama.
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
    """The SAE that a user names; where that is None or `auto`, `default_sae` chooses, and the log says what it took.

    Raises:
        SparseRMError: `default_sae` finds none.
    """
    if sae not in (None, AUTO):
        return sae
    sae = default_sae(config, name)
    logger.info("The SAE for %s is %s: --sae names another.", name, sae)
    return sae


def default_sae(config: PretrainedConfig, name: str) -> str:
    """Choose the SAE for a base model.

    It is that of the base model's preset; or the shipped SAE, where the base model has the shape of SmolLM2-135M; or
    what `middle_sae` chooses out of sae-lens' registry, which knows base models by their id on the Hub alone.

    Args:
        config: The base model's configuration, before it is cut.
        name: Its id on the Hub, or its folder.

    Raises:
        SparseRMError: There is none.
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
    """The number of decoder layers to keep so that the base model ends where the SAE reads.

    Args:
        sae: The SAE.
        config: The base model's configuration, before it is cut.
        name: Its name, for the errors.
        layer: The layer that the user asks for, if any.

    Raises:
        SparseRMError: The SAE cannot belong to the base model or to that layer.
    """
    d_in, width, depth = sae.autoencoder.d_in, config.hidden_size, config.num_hidden_layers
    if d_in != width:
        raise SparseRMError(
            f"The SAE reads {d_in} numbers a token, but the residual stream of {name!r} has {width}: it belongs to "
            "another base model."
        )
    if layer is None:
        layer = sae.layer
    if layer is None:
        raise SparseRMError("The SAE does not say which layer it was trained on: name it with --layer.")
    if sae.layer not in (None, layer):
        raise SparseRMError(
            f"--layer {layer} does not fit the SAE, which was trained on {sae.source['hook_name']}, that is layer "
            f"{sae.layer}: leave --layer out or take another SAE."
        )
    if not 1 <= layer <= depth:
        raise SparseRMError(f"Layer {layer} is out of range: {name!r} has layers 1 to {depth}.")
    return layer
