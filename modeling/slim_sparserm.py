"""Slim checkpoints: their base model is loaded by its name, and must not have changed when they are saved."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone_sparserm import load_cut_decoder
from .configuration_sparserm import SparseRMConfig

# What `from_pretrained` passes on to the base model of a slim checkpoint.
BASE_LOADING_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "force_download",
    "local_files_only",
    "max_memory",
    "proxies",
    "token",
)

SAMPLE = 4096  # numbers of each weight that are remembered


def sample(weight: torch.Tensor) -> torch.Tensor:
    """Copy some numbers of a weight, evenly spread, in its own type."""
    flat = weight.detach().flatten()
    return flat[:: max(len(flat) // SAMPLE, 1)].cpu().clone()


def sample_weights(base_model: nn.Module) -> dict[str, torch.Tensor]:
    """Take some numbers of each of a base model's weights that are there; what lies on the meta device is not."""
    return {name: sample(weight) for name, weight in base_model.state_dict().items() if not weight.is_meta}


def changed_weight(samples: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str | None:
    """Find a weight that is not what it was; None where all are. Another type is no change.

    Args:
        samples: What `sample_weights` took.
        state: The weights now.
    """
    for name in sorted(samples.keys() | state.keys()):
        if name not in samples or name not in state:
            return name
        if state[name].is_meta:
            continue
        now = sample(state[name])
        if now.shape != samples[name].shape or not torch.equal(now.float(), samples[name].to(now.dtype).float()):
            return name
    return None


def load_base_of_slim(config: SparseRMConfig, arguments: dict[str, Any]) -> PreTrainedModel:
    """Load the base model of a slim checkpoint.

    Args:
        config: The checkpoint's.
        arguments: For the base model's `from_pretrained`, some of ``BASE_LOADING_ARGUMENTS``.

    Raises:
        OSError: It cannot be found.
    """
    name = config.base_model_name_or_path
    try:
        return load_cut_decoder(name, config.base_config, revision=config.base_model_revision, **arguments)
    except OSError as error:
        raise OSError(
            f"This checkpoint is slim: it needs its base model {name!r} (revision "
            f"{config.base_model_revision or 'not pinned'}), which cannot be loaded. Name where it is now with "
            "from_pretrained(..., base_model_name_or_path=...)."
        ) from error
