"""Base models, each with a recommended SAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime import SparseRMError

SHIPPED_SAE = Path(__file__).parent / "smollm2-135m-instruct"
AUTO = "auto"  # in the place of an SAE's name: the default SAE of the base model


@dataclass(frozen=True)
class Preset:
    """A base model with a recommended SAE. The hook of the SAE names the layer.

    Attributes:
        model: Id of the base model on the Hub.
        sae: Name of the SAE for `load_sae`.
        why: Reason for this SAE.

    Example:
        >>> PRESETS["gemma-2-2b-it"].sae
        'gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical'
    """

    model: str
    sae: str
    why: str


def _gemma_3(size: str, layer: int) -> Preset:
    sae = f"gemma-scope-2-{size}-it-res/layer_{layer}_width_16k_l0_medium"
    return Preset(f"google/gemma-3-{size}-it", sae, "trained on this model; the middle layer, 16k latents, L0 60")


def _qwen_3(size: str, width: int, layer: int) -> Preset:
    sae = f"qwen-scope-3-{size.lower()}-base-w{width}k-l50/layer{layer}"
    return Preset(
        f"Qwen/Qwen3-{size}", sae, f"trained on the pretrained variant; the middle layer, {width}k latents, L0 50"
    )


# The names of SAEs count layers from 0: layer_13 is blocks.13.hook_resid_post, which is layer 14 counted from 1.
PRESETS = {
    "gemma-2-2b-it": Preset(
        "google/gemma-2-2b-it",
        "gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical",
        "the paper's; trained on the pretrained variant",
    ),
    "gemma-2-9b-it": Preset(
        "google/gemma-2-9b-it",
        "gemma-scope-9b-it-res-canonical/layer_31/width_131k/canonical",
        "the paper's; trained on this model; the authors name latent 86,761, so it has 131k latents, not 16k",
    ),
    "gemma-3-270m-it": _gemma_3("270m", 9),
    "gemma-3-1b-it": _gemma_3("1b", 13),
    "gemma-3-4b-it": _gemma_3("4b", 17),
    "gemma-3-12b-it": _gemma_3("12b", 24),
    "gemma-3-27b-it": _gemma_3("27b", 31),
    "llama-3.1-8b-instruct": Preset(
        "meta-llama/Llama-3.1-8B-Instruct",
        "llama_scope_lxr_8x/l15r_8x",
        "the paper's; trained on the pretrained variant",
    ),
    "qwen3-1.7b": _qwen_3("1.7B", 32, 14),
    "qwen3-8b": _qwen_3("8B", 64, 18),
    "qwen3-30b-a3b": _qwen_3("30B-A3B", 32, 24),
    "gpt2": Preset(
        "openai-community/gpt2",
        "gpt2-small-resid-post-v5-32k/blocks.6.hook_resid_post",
        "trained on this model; the middle layer, 32k latents, L0 32",
    ),
    "pythia-70m-deduped": Preset(
        "EleutherAI/pythia-70m-deduped",
        "pythia-70m-deduped-res-sm/blocks.3.hook_resid_post",
        "trained on this model; the middle layer, from the only release with one SAE a layer",
    ),
    "smollm2-135m-instruct": Preset(
        "HuggingFaceTB/SmolLM2-135M-Instruct", str(SHIPPED_SAE), "trained on this model; comes with this package"
    ),
}


def model_and_sae(preset: str | None, model: str | None, sae: str) -> tuple[str, str]:
    """Fill in the base model and the SAE of a preset. A given model, and an SAE other than `auto`, win over it.

    Args:
        preset: Name of a preset, or None.
        model: Base model, or None.
        sae: Name of an SAE, or `auto`.

    Returns:
        Names of the base model and the SAE.

    Raises:
        SparseRMError: There is no base model.

    Example:
        >>> model_and_sae("gpt2", None, "auto")
        ('openai-community/gpt2', 'gpt2-small-resid-post-v5-32k/blocks.6.hook_resid_post')
    """
    if preset is not None:
        model, sae = model or PRESETS[preset].model, PRESETS[preset].sae if sae == AUTO else sae
    if model is None:
        raise SparseRMError(
            f"No base model is given: name one with --model, or take a --preset ({', '.join(PRESETS)})."
        )
    return model, sae
