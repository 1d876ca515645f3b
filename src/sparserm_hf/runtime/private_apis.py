"""Private or undocumented APIs of other libraries that have no public counterpart, one function each.

The package uses private attributes nowhere else. Each docstring names the versions that the API was seen in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup
    from transformers import TrainingArguments


def cpu_multiplies_bfloat16() -> bool:
    """Tell if this CPU has instructions for products of bfloat16 (AVX-512 or AMX).

    Seen in torch 2.6 to 2.13. The public `torch.cpu.get_capabilities` is newer than the oldest torch that we support.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def attention_of(config: PretrainedConfig) -> str | None:
    """Name the attention implementation of a model, such as `sdpa`.

    Seen in transformers 4.57 to 5.24.
    """
    return config._attn_implementation


def keeps_state(model: PreTrainedModel | PeftModel) -> bool:
    """Tell if a model carries a recurrent state from token to token, as Mamba does.

    Seen in transformers 4.57 to 5.24.
    """
    return model._is_stateful


def commit_of(config: PretrainedConfig) -> str | None:
    """Return the commit on the Hub that a configuration was loaded from; None for a local folder.

    Seen in transformers 4.57 to 5.24.
    """
    return getattr(config, "_commit_hash", None)


def sae_lens_registry() -> dict[str, PretrainedSAELookup]:
    """Return sae-lens' registry of published SAEs: an entry for each release. The import takes seconds.

    Not exported at the top of sae-lens, and moved between modules before. Seen in sae-lens 6.53.1 to 6.54.12.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()


def current_sae_lens_config(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the `cfg.json` of an SAE saved before sae-lens 6 into its form since sae-lens 6.

    Not exported at the top of sae-lens. Seen in sae-lens 6.53.1 to 6.54.12.
    """
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting  # seconds to import

    return handle_config_defaulting(config)


def use_one_gpu(args: TrainingArguments) -> None:
    """Keep a trainer of transformers, in place, from spreading a model over all GPUs of a process.

    TRL refuses such a model. Seen in transformers 4.57 to 5.24.
    """
    args._n_gpu = min(args.n_gpu, 1)
