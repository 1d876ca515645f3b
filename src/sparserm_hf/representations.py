"""One pass of the cut base model over all texts: pooled representations and SAE activations, cached on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .errors import SparseRMError, full_disk_as_os_error
from .modeling.autoencoder_sparserm import SparseAutoencoder
from .modeling.backbone_sparserm import pool_activations, pool_representations, pooled_tokens, residual_stream

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1  # raise it when what a shard holds changes
SHARD_TOKENS = 16_384  # a killed run loses at most this much work


@dataclass(frozen=True)
class Representations:
    """What the base model says of N texts.

    Attributes:
        pooled: (N, d_model) float32, normalised as the model's configuration says.
        activations: (N, d_sae) mean SAE activation over the pooled tokens, sparse.
    """

    pooled: np.ndarray
    activations: sparse.csr_matrix


@dataclass(frozen=True)
class Pooling:
    """How a text becomes one vector; the fields are those of `SparseRMConfig`."""

    pooling: str
    representation_norm: str
    response_marker_ids: list[int]


def default_cache_dir() -> Path:
    """Beside the Hub's own cache: `sparserm` in `HF_HOME`."""
    return Path(constants.HF_HOME) / "sparserm"


def preferred_dtype(device: torch.device) -> torch.dtype:
    """The type a base model runs fastest in without harm: bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        good = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        good = False
    return torch.bfloat16 if good else torch.float32


def named_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that the option `dtype` names: `auto` is the preferred one."""
    return preferred_dtype(device) if name == "auto" else getattr(torch, name)


def batch_tokens(device: torch.device) -> int:
    """Most tokens of a batch, padding included."""
    return 4096 if device.type == "cpu" else 32_768


def fingerprint_module(module: nn.Module) -> str:
    """Hash of a module's type, tensors and their names: the same weights give the same, wherever they came from."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plan_batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Batches of text numbers: longest first, similar lengths together, at most `max_tokens` with the padding."""
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or width * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


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


def pad_texts(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and attention mask, both (B, T)."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids.to(device), mask.to(device)


def _compute_shard(
    base_model: PreTrainedModel,
    sae: SparseAutoencoder | None,
    texts: list[list[int]],
    shard: list[list[int]],
    how: Pooling,
) -> dict[str, torch.Tensor]:
    pooled_rows, activation_rows = [], []
    for batch in shard:
        ids, mask = pad_texts([texts[i] for i in batch], base_model.device)
        with torch.inference_mode():
            hidden = residual_stream(base_model, ids, mask)  # (B, T, d_model)
            pooled = pooled_tokens(ids, mask, how.pooling, how.response_marker_ids)  # (B, T)
            z = pool_representations(hidden, pooled, how.representation_norm)
            activations = pool_activations(hidden, pooled, sae) if sae else z[:, :0]
        finite = torch.isfinite(z).all(-1) & torch.isfinite(activations).all(-1)
        if not finite.all():
            worst = batch[int((~finite).nonzero()[0])]
            raise SparseRMError(
                f"The representation of text {worst + 1} ({len(texts[worst])} tokens) is not finite: the base model "
                f"overflows in {str(base_model.dtype).removeprefix('torch.')}. Use dtype='float32', or look for "
                "broken weights."
            )
        pooled_rows.append(z.cpu())
        activation_rows.append(sparse.csr_matrix(activations.cpu().numpy()))
    activations = sparse.vstack(activation_rows, format="csr")
    return {
        "pooled": torch.cat(pooled_rows),
        "values": torch.from_numpy(activations.data),
        "columns": torch.from_numpy(activations.indices.astype(np.int32)),
        "row_starts": torch.from_numpy(activations.indptr.astype(np.int64)),
    }


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with full_disk_as_os_error(path):
            save_file(tensors, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether a shard is there and not cut off, as a power failure may leave it."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _read_shards(paths: list[Path], d_sae: int) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    for path in paths:
        shard = load_file(path)
        parts = (shard[name].numpy() for name in ("values", "columns", "row_starts"))
        yield shard["pooled"].numpy(), sparse.csr_matrix(tuple(parts), shape=(len(shard["pooled"]), d_sae))


def collect_representations(
    base_model: PreTrainedModel,
    sae: SparseAutoencoder | None,
    texts: list[list[int]],
    how: Pooling,
    cache_dir: Path,
    max_tokens: int | None = None,
) -> Representations:
    """Represent texts; what is already in the cache is not computed again, even where a run was killed half-way.

    Under `accelerate launch` each process computes its share of the shards and all return the whole.

    Args:
        base_model: A cut base model, in eval mode on its device.
        sae: The SAE of the layer that the base model is cut after, on the same device; without one there are no
            activations.
        texts: Token ids, each text once.
        how: Pooling and normalisation.
        cache_dir: Where shards are kept, under a fingerprint of everything that changes them.
        max_tokens: Most tokens of a batch, padding included; by the device where left out.

    Raises:
        SparseRMError: A representation is not finite.
        OSError: The cache cannot be written. The shards written before stay.
    """
    state = PartialState()
    max_tokens = max_tokens or batch_tokens(base_model.device)
    identity = {
        "format": CACHE_FORMAT,
        "base_model": fingerprint_module(base_model),
        "base_config": {k: v for k, v in base_model.config.to_dict().items() if not k.startswith("_")},
        "torch": torch.__version__,
        "sae": [fingerprint_module(sae), sae.spec()] if sae else None,
        "how": vars(how),
        "dtype": str(base_model.dtype),
        "device": base_model.device.type,
        "max_tokens": max_tokens,
        "texts": hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest(),
    }
    fingerprint = hashlib.blake2b(json.dumps(identity, sort_keys=True, default=str).encode(), digest_size=16)
    folder = cache_dir / fingerprint.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    lengths = [len(text) for text in texts]
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
                _write_shard(paths[i], _compute_shard(base_model, sae, texts, shards[i], how))
                bar.update(size[i])
    else:
        logger.info("All representations come from the cache, %s", folder)
    state.wait_for_everyone()
    pooled, activations = zip(*_read_shards(paths, sae.d_sae if sae else 0), strict=True)
    place = np.argsort([i for batch in batches for i in batch])  # from the order of the batches to that of the texts
    return Representations(np.concatenate(pooled)[place], sparse.vstack(activations, format="csr")[place])
