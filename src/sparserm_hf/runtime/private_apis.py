"""Private attributes of other libraries that have no public counterpart, one function each.

The package uses private attributes nowhere else. Each docstring names the versions that the attribute was seen in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

if TYPE_CHECKING:
    from peft import PeftModel


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


def use_one_gpu(args: TrainingArguments) -> None:
    """Keep a trainer of transformers, in place, from spreading a model over all GPUs of a process.

    TRL refuses such a model. Seen in transformers 4.57 to 5.24.
    """
    args._n_gpu = min(args.n_gpu, 1)
