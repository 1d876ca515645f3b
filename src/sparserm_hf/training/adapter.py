"""The step `adapt`: a LoRA adapter in front of the frozen SAE, trained together with the reward head.

The frozen method chooses latents and directions. The adapter then changes the upper half of the base model's layers so
that projections on these directions tell chosen from rejected responses better. The adapter is merged into the base
model, so the reward model has the same form as without an adapter.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..base_models import cast_weights, hash_tensors
from ..conversations import TokenizedPreferences
from ..evaluation import Layers
from ..modeling.backbone_sparserm import decoder_layers, decoder_layers_name
from ..representations import Pooling, Representer
from ..runtime import SparseRMError, memory_advice, process_state, reason, replacing_file
from .calibration import fit_temperature
from .config import SparseRMTrainingConfig
from .folds import group_folds, pairs_outside
from .linear_head import fit_linear_path
from .parts import FrozenParts
from .represented_texts import PairIndices
from .steps import FittedRewardHead

if TYPE_CHECKING:
    from peft import PeftModel

    from .adapter_training import PairRewards

RECIPE = 1  # raise it when a change of the training gives other weights
HELD_OUT = 10  # one prompt in ten is held out
RESULT_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Adapted:
    """A base model with its adapter merged, and the head that was trained with the adapter.

    Attributes:
        base_model: A changed copy of the cut base model.
        layers: (weight, bias) of each affine layer of the head, on the directions of the frozen method.
        held_out: Indices of the held-out pairs.
        parameters: Number of trained parameters, including the head's.
    """

    base_model: PreTrainedModel
    layers: Layers
    held_out: np.ndarray
    parameters: int


def adapt(
    parts: FrozenParts,
    fitted: FittedRewardHead,
    pairs: TokenizedPreferences,
    indices: PairIndices,
    args: SparseRMTrainingConfig,
    cache_dir: Path,
) -> Adapted:
    """Train an adapter and a reward head by the Bradley-Terry loss, from the fitted head of the frozen base model.

    One prompt in ten is held out: the weights with the lowest loss on these prompts are kept. The latents and the
    penalty of the head were chosen with all prompts. The result is kept in the cache, where a run with the same input
    finds it. A killed run resumes from its last evaluation; on a CPU its result is the same to the bit.

    Args:
        parts: Cut base model, SAE and tokenizer; they are not changed.
        fitted: Latents, directions and head for the frozen base model.
        pairs: Preference pairs.
        indices: The same pairs, as positions of their texts.
        args: Settings.
        cache_dir: Folder of the cache.

    Raises:
        SparseRMError: There are too few prompts, peft cannot adapt the base model, the memory is full, or the training
            diverged.
    """
    from .adapter_training import PairRewards, train  # the Trainer takes seconds to import

    rows, held_out = _split(fitted, pairs, args.seed)
    how = Pooling(args.pooling, args.representation_norm)
    with memory_advice("training the adapter", "take a smaller max_length, or a GPU with more memory"):
        adapter = add_adapter(copy.deepcopy(parts.base_model), args.adapter_rank, args.seed)
        directions, start = fitted.projection.directions.rows, _start(fitted, indices.rows(rows), args)
        base: Any = adapter.get_base_model()
        model = PairRewards(base, how, parts.sae.autoencoder, directions, start, pairs)
        folder = cache_dir / _fingerprint(parts, model, pairs, args, how)
        if not _load(model, folder / RESULT_FILE):
            train(model, rows, held_out, args.seed, folder)
            _save(model, folder / RESULT_FILE)
        folder.touch()  # when the cache grows too large, the folders that were used last are kept
    merged: Any = adapter.merge_and_unload()
    # Round the weights to the data type of the checkpoint, so that the evaluated weights equal the saved weights.
    merged = cast_weights(cast_weights(merged, parts.saved_dtype), parts.dtype)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return Adapted(merged.eval().requires_grad_(False), model.layers, held_out, parameters)


def add_adapter(base_model: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """Add a LoRA adapter, in place, to the linear maps in the upper half of a cut base model's layers.

    The lower half then needs no gradients, which saves nearly half of the time.

    Raises:
        SparseRMError: peft cannot adapt the base model.
    """
    from peft import LoraConfig, get_peft_model

    name, layers = decoder_layers_name(base_model), decoder_layers(base_model)
    maps = {
        f"{name}.{i}.{part}": module
        for i in range(len(layers) // 2, len(layers))
        for part, module in layers[i].named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    transposed = any(isinstance(module, Conv1D) for module in maps.values())  # as in GPT-2
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(maps), fan_in_fan_out=transposed)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(base_model, config)  # type: ignore[return-value]
    except ValueError as error:
        raise SparseRMError(
            f"{type(base_model).__name__} takes no adapter ({reason(error)}): leave adapter_rank out."
        ) from error


def _split(fitted: FittedRewardHead, pairs: TokenizedPreferences, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the pairs into training pairs and held-out pairs; returns the indices of both."""
    fold_of = group_folds(np.array(pairs.groups), HELD_OUT, seed)
    rows = pairs_outside(fold_of, 0)
    if not len(rows) or fitted.head.held_out_margins is None:
        raise SparseRMError(
            "An adapter needs held-out prompts to choose its weights, but there are too few prompts: add other "
            "prompts, or leave adapter_rank out."
        )
    return rows, np.flatnonzero(fold_of == 0)


def _start(fitted: FittedRewardHead, pairs: PairIndices, config: SparseRMTrainingConfig) -> Layers:
    """Make the head that the training starts from: fitted to the given pairs, and scaled to log odds.

    An MLP head was fitted without a fifth of the prompts, among which are all prompts that are held out here.
    """
    head, margins = fitted.head, fitted.head.held_out_margins
    assert margins is not None  # see adapt
    if head.l2 is not None:
        features, objective = pairs.features(fitted.projection.features), pairs.objective(config.loss, config.gamma)
        (head,) = fit_linear_path(features, objective, (head.l2,))
    temperature = fit_temperature(margins)
    *rest, (weight, bias) = head.layers
    return (*rest, (weight / temperature, bias / temperature))


def _fingerprint(
    parts: FrozenParts, model: PairRewards, pairs: TokenizedPreferences, args: SparseRMTrainingConfig, how: Pooling
) -> str:
    """Hash everything that the trained weights depend on."""
    sae = parts.sae.autoencoder
    frozen = Representer(parts.base_model, sae, pairs.texts, how)
    listed = [pairs.chosen, pairs.rejected, pairs.groups, pairs.margins, args.adapter_rank, args.seed]
    listed += [process_state().num_processes, frozen.fingerprint(0), version("peft")]
    what = json.dumps(["adapter", RECIPE, *map(str, listed)])
    return hash_tensors(what, dict(model.head.named_parameters()) | dict(model.named_buffers()))


def _load(model: PairRewards, path: Path) -> bool:
    """Load trained weights, in place; returns False if there are none in the file, or the file is broken."""
    try:
        model.load_state_dict(load_file(path))
    except (FileNotFoundError, SafetensorError, RuntimeError):  # absent, or broken: train again
        return False
    return True


def _save(model: PairRewards, path: Path) -> None:
    """Write the trained weights, then remove the checkpoints of the training."""
    if not all(tensor.isfinite().all() for tensor in model.parameters()):
        raise SparseRMError(
            "The training of the adapter diverged, as a weight is not finite: take another seed, dtype or base model."
        )
    state = process_state()
    if state.is_main_process:
        with replacing_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
        for checkpoint in path.parent.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    state.wait_for_everyone()
