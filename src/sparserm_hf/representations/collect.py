"""One pass of the cut base model over all texts: pooled representations and SAE activations, cached on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..base_models import Family, can_pack, find_families, fingerprint_module, hash_tensors, run_packed
from ..conversations import TokenizedText
from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..modeling.backbone_sparserm import pool_representations, residual_stream
from ..modeling.response_sparserm import pooled_tokens
from ..runtime import (
    SparseRMError,
    attention_of,
    batch_tokens,
    pad_texts,
    plan_batches,
    process_state,
    prune_cache,
    replacing_file,
)
from .activations import encode_texts, mean_and_largest
from .shards import Representations, StoredShard

logger = logging.getLogger(__name__)

DIGEST = "digest"  # in the metadata of a shard: of its place and tensors
CACHE_FORMAT = 4  # raise it when what a shard holds changes
SHARD_TOKENS = 16_384  # a killed run loses at most this much work
TOKEN_TEXTS = 2_048  # the first texts, whose activations are kept for each token: enough to name latents by


@dataclass(frozen=True)
class Pooling:
    """How a text becomes one vector; the fields are those of `SparseRMConfig`."""

    pooling: str
    representation_norm: str


def plan_shards(batches: list[list[int]], lengths: list[int]) -> list[list[list[int]]]:
    """Consecutive batches grouped until they hold `SHARD_TOKENS` tokens: each group becomes one file."""
    shards: list[list[list[int]]] = []
    size = SHARD_TOKENS
    for batch in batches:
        if size >= SHARD_TOKENS:
            shards.append([])
            size = 0
        shards[-1].append(batch)
        size += sum(lengths[i] for i in batch)
    return shards


def _compute_shard(
    base_model: PreTrainedModel,
    sae: SparseAutoencoder | None,
    texts: list[TokenizedText],
    ids_of: list[tuple[int, ...]],
    shard: list[list[Family]],
    how: Pooling,
    packed: bool,
) -> dict[str, torch.Tensor]:
    means: list[torch.Tensor] = []
    pooled_rows, token_rows, token_texts = _SparseRows(), _SparseRows(), []
    for batch in shard:
        members = [i for family in batch for i in family.members]
        ids, mask = pad_texts([ids_of[i] for i in members], base_model.device)
        with torch.inference_mode():
            if packed:
                hidden = pad_sequence(run_packed(base_model, ids_of, batch), batch_first=True)  # (B, T, d_model)
            else:
                hidden = residual_stream(base_model, ids, mask)
            pooled = pooled_tokens(mask, [texts[i].place for i in members], how.pooling)  # (B, T)
            mean = pool_representations(hidden, pooled, how.representation_norm)
            finite = torch.isfinite(mean).all(-1)
            for row, encoded in enumerate(encode_texts(hidden, pooled, sae) if sae else []):
                average, largest = mean_and_largest(encoded)  # (d_sae,) each
                finite[row] &= torch.isfinite(largest).all()
                fires = largest > 0  # where the average is above zero too
                pooled_rows.add(fires[None], values=average[None], max_values=largest[None])
                if members[row] < TOKEN_TEXTS:
                    token_rows.add(encoded > 0, values=encoded)
                    token_texts += [members[row]] * len(encoded)
            if not finite.all():
                worst = members[int((~finite).nonzero()[0])]
                raise SparseRMError(
                    f"The representation of text {worst + 1} ({len(ids_of[worst])} tokens) is not finite: the base "
                    f"model overflows in {str(base_model.dtype).removeprefix('torch.')}. Use dtype='float32', or look "
                    "for broken weights."
                )
        means.append(mean.cpu())
    tensors = {"mean": torch.cat(means), "token_texts": torch.tensor(token_texts, dtype=torch.int64)}
    return tensors | pooled_rows.tensors("pooled") | token_rows.tensors("token")


class _SparseRows:
    """Rows of a sparse matrix as they come, in the compressed form that `StoredShard` reads."""

    def __init__(self) -> None:
        self.columns: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int32)]
        self.counts: list[torch.Tensor] = [torch.zeros(1, dtype=torch.int64)]
        self.values: dict[str, list[torch.Tensor]] = {}

    def add(self, where: torch.Tensor, **values: torch.Tensor) -> None:
        """Add the entries of dense rows (n, columns) at some places."""
        self.counts.append(where.sum(-1).cpu())
        self.columns.append(where.nonzero()[:, 1].int().cpu())
        for name, dense in values.items():
            self.values.setdefault(name, [torch.zeros(0)]).append(dense[where].cpu())

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """What is stored, under names that begin with a prefix."""
        joined = {"columns": self.columns, **self.values}
        whole = {f"{prefix}_{name}": torch.cat(parts) for name, parts in joined.items()}
        return whole | {f"{prefix}_starts": torch.cat(self.counts).cumsum(0)}


def _save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, {DIGEST: hash_tensors(f"{path.parent.name}/{path.name}", tensors)})


def _is_whole(path: Path) -> bool:
    """Whether a shard is there, and holds what was written: not cut off by a power failure, and no bit flipped."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata()[DIGEST] == hash_tensors(f"{path.parent.name}/{path.name}", tensors)
    except Exception:  # whatever a broken file does
        return False


def collect_representations(
    base_model: PreTrainedModel,
    sae: SparseAutoencoder | None,
    texts: list[TokenizedText],
    how: Pooling,
    cache_dir: Path,
    max_tokens: int | None = None,
) -> Representations:
    """Represent texts; what is already in the cache is not computed again, even where a run was killed half-way.

    A shard that is not what was written there is.

    What several texts begin with, such as the prompt of a pair, is computed once.

    Under `accelerate launch` each process computes its share of the shards and all return the whole.

    Args:
        base_model: A cut base model, in eval mode on its device.
        sae: The SAE of the layer that the base model is cut after, on the same device; without one there are no
            activations.
        texts: Each text once.
        how: Pooling and normalisation.
        cache_dir: Where shards are kept, under a fingerprint of everything that changes them.
        max_tokens: Most tokens of a batch, padding included; by the device where left out.

    Raises:
        SparseRMError: A representation is not finite.
        OSError: The cache cannot be written. The shards written before stay.
    """
    state = process_state()
    max_tokens = max_tokens or batch_tokens(base_model.device)
    ids_of = [text.ids for text in texts]
    packed = can_pack(base_model, max(map(len, ids_of)))
    identity = {
        "format": CACHE_FORMAT,
        "base_model": fingerprint_module(base_model),
        "base_config": {k: v for k, v in base_model.config.to_dict().items() if not k.startswith("_")},
        "versions": [torch.__version__, transformers.__version__],
        "attention": attention_of(base_model.config),
        "sae": [fingerprint_module(sae), sae.spec()] if sae else None,
        "how": vars(how),
        "dtype": str(base_model.dtype),
        "device": base_model.device.type,
        "max_tokens": max_tokens,
        "packed": packed,
        "texts": hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest(),
    }
    fingerprint = hashlib.blake2b(json.dumps(identity, sort_keys=True, default=str).encode(), digest_size=16)
    folder = cache_dir / fingerprint.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    if state.is_main_process:
        prune_cache(cache_dir)
    families = find_families(ids_of) if packed else [Family((i,), len(x), len(x)) for i, x in enumerate(ids_of)]
    lengths = [family.length for family in families]
    batches = plan_batches(lengths, max_tokens)
    shards = plan_shards(batches, lengths)
    paths = [folder / f"{i:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    mine = range(state.process_index, len(shards), state.num_processes)
    todo = [i for i in mine if not _is_whole(paths[i])]
    if todo:
        logger.info("%d of %d shards are to be computed into %s", len(todo), len(mine), folder)
        size = {i: sum(lengths[j] for batch in shards[i] for j in batch) for i in todo}
        with tqdm(
            total=sum(size.values()),
            desc="Representations",
            unit="tok",
            unit_scale=True,
            disable=not state.is_main_process,
        ) as bar:
            for i in todo:
                shard = [[families[j] for j in batch] for batch in shards[i]]
                tensors = _compute_shard(base_model, sae, texts, ids_of, shard, how, packed)
                _save_shard(tensors, paths[i])
                bar.update(size[i])
    else:
        logger.info("All representations come from the cache, %s", folder)
    state.wait_for_everyone()
    order = np.array([i for batch in batches for family in batch for i in families[family].members])
    return Representations([StoredShard(path, sae.d_sae if sae else 0) for path in paths], order)
