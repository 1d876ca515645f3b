"""The step `adapt`: a LoRA adapter in front of the frozen SAE, trained together with the reward head.

The frozen method chooses latents and directions. The adapter then changes the upper half of the base model's layers so
that projections on these directions tell chosen from rejected responses better. It is merged into the base model, so
the reward model is of the same kind as without it.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base_models import fingerprint_module, hash_tensors
from ..conversations import TokenizedPreferences
from ..evaluation import Layers
from ..modeling.backbone_sparserm import decoder_layers, decoder_layers_name
from ..representations import Pooling, Representer
from ..runtime import SparseRMError, process_state, reason, replacing_file
from .calibration import fit_temperature
from .config import SparseRMTrainingConfig
from .folds import group_folds, pairs_outside
from .objective import FittedHead
from .parts import FrozenParts
from .steps import FittedRewardHead

if TYPE_CHECKING:
    from peft import PeftModel

    from .adapter_training import PairRewards

RECIPE = 1  # raise it when a change of the training gives other weights
HELD_OUT = 10  # one prompt of so many is held out
RESULT_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Adapted:
    """A base model with its adapter merged, and the head that was trained with the adapter.

    Attributes:
        base_model: A changed copy of the cut base model.
        layers: (weight, bias) of each affine layer of the head, on the directions of the frozen method.
        held_out: Numbers of the pairs that were held out.
        parameters: Number of trained parameters, those of the head included.
    """

    base_model: PreTrainedModel
    layers: Layers
    held_out: np.ndarray
    parameters: int


def adapt(
    parts: FrozenParts,
    fitted: FittedRewardHead,
    pairs: TokenizedPreferences,
    args: SparseRMTrainingConfig,
    cache_dir: Path,
) -> Adapted:
    """Train an adapter and a reward head by the Bradley-Terry loss, from the fitted head of the frozen base model.

    The result is kept in the cache, where a run with the same input finds it. A killed run resumes from its last
    evaluation, to the same weights.

    Args:
        parts: Cut base model, SAE and tokenizer; they are not changed.
        fitted: Latents, directions and head for the frozen base model.
        pairs: Preference pairs.
        args: Settings.
        cache_dir: Folder of the cache.

    Raises:
        SparseRMError: All pairs have the same prompt, peft cannot adapt the base model, the memory is full, or the
            training diverged.
    """
    from .adapter_training import PairRewards, train  # the Trainer takes seconds to import

    fold_of = group_folds(np.array(pairs.groups), HELD_OUT, args.seed)
    held_out, rows = np.flatnonzero(fold_of == 0), pairs_outside(fold_of, 0)
    if not len(rows):
        raise SparseRMError(
            "An adapter needs held-out prompts to stop its training, but all pairs have the same prompt: add other "
            "prompts, or leave adapter_rank out."
        )
    frozen = Representer(parts.base_model, None, pairs.texts, Pooling(args.pooling, args.representation_norm))
    adapter = add_adapter(copy.deepcopy(parts.base_model), args.adapter_rank, args.seed)
    with_adapter: Any = adapter.get_base_model()
    representer = Representer(with_adapter, None, frozen.texts, frozen.how)
    directions = fitted.projection.directions.rows
    model = PairRewards(representer, parts.sae.autoencoder, directions, _calibrated(fitted.head), pairs)
    folder = cache_dir / _fingerprint(model, pairs, args, frozen)
    if not _load(model, folder / RESULT_FILE):
        train(model, rows, held_out, args.seed, folder)
        _save(model, folder / RESULT_FILE)
    merged: Any = adapter.merge_and_unload()
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return Adapted(merged.eval().requires_grad_(False), model.layers, held_out, parameters)


def add_adapter(base_model: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """Add a LoRA adapter, in place, to the linear maps in the upper half of a cut base model's layers.

    The lower half then needs no gradients, which saves half of the time. In a measurement on three tasks, an adapter
    of all layers with as many parameters was no better (`benchmarks/adapter.py`).

    Raises:
        SparseRMError: peft cannot adapt the base model.
    """
    from peft import LoraConfig, get_peft_model

    name, layers = decoder_layers_name(base_model), decoder_layers(base_model)
    maps = [
        f"{name}.{i}.{part}"
        for i in range(len(layers) // 2, len(layers))
        for part, module in layers[i].named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=maps)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(base_model, config)  # type: ignore[return-value]
    except ValueError as error:
        raise SparseRMError(
            f"{type(base_model).__name__} takes no adapter ({reason(error)}): leave adapter_rank out."
        ) from error


def _calibrated(head: FittedHead) -> Layers:
    """Scale a head so that its reward differences are log odds, as the Bradley-Terry loss takes them."""
    assert head.held_out_margins is not None
    temperature = fit_temperature(head.held_out_margins)
    *rest, (weight, bias) = head.layers
    return (*rest, (weight / temperature, bias / temperature))


def _fingerprint(
    model: PairRewards, pairs: TokenizedPreferences, args: SparseRMTrainingConfig, frozen: Representer
) -> str:
    """Hash everything that the trained weights depend on."""
    listed = [pairs.chosen, pairs.rejected, pairs.groups, pairs.margins, args.adapter_rank, args.seed]
    listed += [process_state().num_processes, frozen.fingerprint(0), fingerprint_module(model.sae[0])]
    what = json.dumps(["adapter", RECIPE, *map(str, listed)])
    return hash_tensors(what, dict(model.head.named_parameters()) | dict(model.named_buffers()))


def _load(model: PairRewards, path: Path) -> bool:
    """Load trained weights, in place, if they are there."""
    try:
        model.load_state_dict(load_file(path))
    except (FileNotFoundError, SafetensorError, RuntimeError):  # absent, or broken: train again
        return False
    return True


def _save(model: PairRewards, path: Path) -> None:
    """Keep trained weights in place of the checkpoints that led to them."""
    if not all(tensor.isfinite().all() for tensor in model.parameters()):
        raise SparseRMError("The training of the adapter diverged, as a weight is not finite: set dtype to float32.")
    state = process_state()
    if state.is_main_process:
        with replacing_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
        for checkpoint in path.parent.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    state.wait_for_everyone()
