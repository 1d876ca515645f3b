"""One pass over all texts, cached on disk: a killed run goes on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..base_models import Family
from ..conversations import TokenizedText
from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..runtime import batch_tokens, memory_advice, plan_batches, process_state, prune_cache
from .representer import Pooling, Representer
from .shard_files import StoredShard, is_whole, save_shard
from .shards import Representations

logger = logging.getLogger(__name__)

MEMORY_ADVICE = "take a smaller max_length, a smaller dtype, or a quantised base model"
SHARD_TOKENS = 16_384  # a killed run loses at most this much work


def collect_representations(
    base_model: PreTrainedModel,
    sae: SparseAutoencoder | None,
    texts: list[TokenizedText],
    how: Pooling,
    cache_dir: Path,
    max_tokens: int | None = None,
) -> Representations:
    """Represent texts, and keep the representations in a cache, where later runs find them.

    The texts are divided into shards, one file each. Only shards that the cache does not have, or that are damaged,
    are computed. A beginning that several texts share, such as the prompt of a pair, is computed once. Under
    `accelerate launch` each process computes its share of the shards, and all return the whole.

    Args:
        base_model: A cut base model, in eval mode on its device.
        sae: SAE of the layer that the base model is cut after, on the same device; None leaves out activations.
        texts: The texts, each once.
        how: Pooling and normalisation.
        cache_dir: Folder of the cache.
        max_tokens: Batch size in tokens, padding included; by default chosen for the device.

    Raises:
        SparseRMError: A representation is not finite, or the memory is full. Finished shards stay.
        OSError: The cache cannot be written. Finished shards stay.
    """
    max_tokens = max_tokens or batch_tokens(base_model.device)
    representer = Representer(base_model, sae, texts, how)
    folder = cache_dir / representer.fingerprint(max_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    if process_state().is_main_process:
        prune_cache(cache_dir)
    families = representer.families()
    lengths = [family.length for family in families]
    batches = plan_shards(plan_batches(lengths, max_tokens), lengths)
    shards = [[[families[i] for i in batch] for batch in shard] for shard in batches]
    paths = [folder / f"{i:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    _compute_missing(representer, shards, paths)
    order = np.array([i for shard in shards for batch in shard for family in batch for i in family.members])
    return Representations([StoredShard(path, sae.d_sae if sae else 0) for path in paths], order)


def _compute_missing(representer: Representer, shards: list[list[list[Family]]], paths: list[Path]) -> None:
    """Compute this process's share of the shards that the cache lacks, and wait for the other processes."""
    state = process_state()
    mine = range(state.process_index, len(shards), state.num_processes)
    todo = [i for i in mine if not is_whole(paths[i])]
    if todo:
        logger.info("Computing %d of %d shards into %s", len(todo), len(mine), paths[0].parent)
        tokens = sum(family.length for i in todo for batch in shards[i] for family in batch)
        hidden = not state.is_main_process
        with tqdm(None, "Representations", tokens, unit="tok", unit_scale=True, disable=hidden) as bar:
            for i in todo:
                with memory_advice("representing texts", MEMORY_ADVICE):
                    tensors = representer.compute_shard(_advancing(bar, shards[i]))
                save_shard(tensors, paths[i])
    else:
        logger.info("All representations come from the cache, %s", paths[0].parent)
    state.wait_for_everyone()


def _advancing(bar: tqdm, batches: list[list[Family]]) -> Iterator[list[Family]]:
    """Yield batches, and move a progress bar on after each: a shard may take a minute on a CPU."""
    for batch in batches:
        yield batch
        bar.update(sum(family.length for family in batch))


def plan_shards(batches: list[list[int]], lengths: list[int]) -> list[list[list[int]]]:
    """Group consecutive batches into shards of at least `SHARD_TOKENS` tokens, the last one excepted.

    Args:
        batches: Numbers of the families in each batch.
        lengths: Tokens of each family.

    Example:
        >>> plan_shards([[0], [1], [2]], [9_000, 8_000, 7_000])
        [[[0], [1]], [[2]]]
    """
    shards: list[list[list[int]]] = []
    size = SHARD_TOKENS
    for batch in batches:
        if size >= SHARD_TOKENS:
            shards.append([])
            size = 0
        shards[-1].append(batch)
        size += sum(lengths[i] for i in batch)
    return shards
