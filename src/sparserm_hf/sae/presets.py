"""Base models with the SAE that goes with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import SparseRMError

SHIPPED_SAE = Path(__file__).parent / "smollm2-135m-instruct"


@dataclass(frozen=True)
class Preset:
    """A base model and its SAE, whose hook says the layer.

    Attributes:
        model: The base model's id on the Hub.
        sae: What `load_sae` takes.
    """

    model: str
    sae: str


# The set-ups of the paper, and our own SAE. Gemma Scope's layer_13 is blocks.13.hook_resid_post: 14 layers are kept.
# Of the paper's SAEs only that of Gemma 2 9B was trained on the instruction-tuned model itself, the others on its
# base.
PRESETS = {
    "gemma-2-2b-it": Preset("google/gemma-2-2b-it", "gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical"),
    "gemma-2-9b-it": Preset("google/gemma-2-9b-it", "gemma-scope-9b-it-res-canonical/layer_31/width_131k/canonical"),
    "llama-3.1-8b-instruct": Preset("meta-llama/Llama-3.1-8B-Instruct", "llama_scope_lxr_8x/l15r_8x"),
    "smollm2-135m-instruct": Preset("HuggingFaceTB/SmolLM2-135M-Instruct", str(SHIPPED_SAE)),
}


def model_and_sae(preset: str | None, model: str | None, sae: str | None) -> tuple[str, str | None]:
    """The base model and the SAE (None: the one that fits it) that a command line names; what it names wins.

    Raises:
        SparseRMError: There is no base model.
    """
    if preset is not None:
        model, sae = model or PRESETS[preset].model, sae or PRESETS[preset].sae
    if model is None:
        raise SparseRMError(
            f"No base model is given: name one with --model, or take a --preset ({', '.join(PRESETS)})."
        )
    return model, sae
