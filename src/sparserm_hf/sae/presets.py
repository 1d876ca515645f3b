"""The SAEs that the package knows for a base model, recognised by its configuration."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from ..errors import SparseRMError

SHIPPED_SAE = Path(__file__).parent / "smollm2-135m-instruct"

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


def default_sae(config: PretrainedConfig, name: str) -> str:
    """The SAE that fits a base model.

    Args:
        config: The base model's configuration, before it is cut.
        name: Its name, for the error.

    Raises:
        SparseRMError: The package knows none.
    """
    if all(getattr(config, key, None) == value for key, value in _SMOLLM2_135M.items()):
        return str(SHIPPED_SAE)
    raise SparseRMError(
        f"No SAE is known for the base model {name!r}: name one with --sae, a folder in sae-lens' format or an entry "
        "of sae-lens' registry such as gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical."
    )
