"""Check loaded weights: the files are safetensors in one folder, the weights are complete, finite and as saved."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from .quantized_sparserm import plain_tensors

# Arguments of `from_pretrained` that say where a file is.
WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
WORD = 8  # bytes that are summed as one number
BACK = {"torch.bfloat16", "torch.float16"}  # weights saved in these types survive a detour through float32

Digest = dict[str, dict[str, str]]


def check_index(name_or_path: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse an index of weight files that names a pickle, or a file outside the folder or repository.

    Args:
        name_or_path: Hub id or folder.
        kwargs: Arguments of `from_pretrained`.

    Raises:
        ValueError: The index names such a file, or is not an index.
    """
    where = {name: kwargs[name] for name in WHERE if name in kwargs}
    index = cached_file(name_or_path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **where)
    if index is None:
        return
    try:
        with open(index, encoding="utf-8") as file:
            files = set(json.load(file)["weight_map"].values())
        wrong = sorted(name for name in files if not name.endswith(".safetensors") or "/" in name or "\\" in name)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{SAFE_WEIGHTS_INDEX_NAME} of {str(name_or_path)!r} does not say which files hold the weights. "
            "Save or download it anew."
        ) from error
    if wrong:
        raise ValueError(
            f"{SAFE_WEIGHTS_INDEX_NAME} of {str(name_or_path)!r} names {wrong[0]!r}, but weights are only read from "
            ".safetensors files in the same folder."
        )


def check_loaded(name_or_path: Any, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that has missing, surplus, infinite or NaN weights, or other weights than were saved.

    Args:
        name_or_path: Folder or Hub id.
        model: The loaded model; a slim one still without its base model.
        info: The loading info that `from_pretrained` returned.

    Raises:
        ValueError: The weights are not those that were saved.
    """
    checkpoint, anew = f"The checkpoint {str(name_or_path)!r}", "Save or download it anew."
    for kind, what in (("missing_keys", "lacks {} of its tensors"), ("unexpected_keys", "holds {} tensors too many")):
        if names := sorted(info[kind]):
            raise ValueError(f"{checkpoint} {what.format(len(names))}, among them {names[0]!r}. {anew}")
    state = model.state_dict()
    for name, tensor in state.items():
        is_there = tensor.is_floating_point() and tensor.element_size() > 1 and tensor.numel() and not tensor.is_meta
        if is_there and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise ValueError(f"{checkpoint} holds NaN or infinity among its weights {name!r}. {anew}")
    if not is_as_saved(state, model.config.weights_digest):
        raise ValueError(
            f"{checkpoint} holds other weights than were saved with its configuration: a file is damaged, or belongs "
            f"to another model. {anew}"
        )


def digest_of(state: Mapping[str, torch.Tensor]) -> Digest | None:
    """Sum weights as 64-bit integers, by data type: one flipped bit changes the sum.

    A sum does not depend on the grouping of weights into tensors, which differs between transformers 4 and 5.

    Args:
        state: All weights of a model; names of the base model's weights begin with `model.`.

    Returns:
        The sums of the base model's weights and of all others, in hexadecimal; None if some are on the meta device.
    """
    if any(tensor.is_meta for tensor in state.values()):
        return None
    return {part: _sums(tensors) for part, tensors in _parts(state).items()}


def is_as_saved(state: Mapping[str, torch.Tensor], digest: Digest | None) -> bool:
    """Tell if weights are those that were saved, as far as this can be known.

    Weights that were loaded in a smaller data type, or quantised on loading, are not compared.

    Args:
        state: All weights of the checkpoint.
        digest: The digest in its configuration; None in checkpoints before version 0.3.
    """
    for part, tensors in _parts(state).items():
        saved, types = (digest or {}).get(part), {str(tensor.dtype) for tensor in tensors.values()}
        if saved is None or any(tensor.is_meta for tensor in tensors.values()):
            continue
        if types == {"torch.float32"} and len(saved) == 1 and saved.keys() <= BACK:
            dtype = getattr(torch, next(iter(saved)).removeprefix("torch."))
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        elif types != saved.keys():
            continue
        if _sums(tensors) != saved:
            return False
    return True


def _parts(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {"base": {}, "own": {}}
    for name, tensor in plain_tensors(state).items():
        parts["base" if name.startswith("model.") else "own"][name] = tensor
    return parts


def _sums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    sums: dict[str, int] = {}
    seen = set()
    for tensor in tensors.values():
        if (place := (tensor.data_ptr(), tensor.shape)) in seen and tensor.numel():
            continue  # tied
        seen.add(place)
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        whole = len(flat) // WORD * WORD
        words = flat[:whole] if flat.storage_offset() % WORD == 0 else flat[:whole].clone()
        total = int(words.view(torch.int64).sum()) + int(flat[whole:].sum())
        kind = str(tensor.dtype)
        sums[kind] = (sums.get(kind, 0) + total) % 2**64
    return {kind: f"{total:016x}" for kind, total in sorted(sums.items())}
