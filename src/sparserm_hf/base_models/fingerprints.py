"""base_models.fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..modeling.quantized_sparserm import plain_tensors
from ..modeling.slim_sparserm import sample

_fingerprints: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


def fingerprint_module(module: nn.Module) -> str:
    """Hash a module's type, tensors and their names: the same weights give the same, wherever they came from.

    All weights are hashed once; as long as a sample of each is the same, they are taken to be the same.
    """
    state = plain_tensors(module.state_dict())
    kind = type(module).__name__
    sampled = hash_tensors(kind, {name: sample(tensor) for name, tensor in state.items()})
    if _fingerprints.get(module, ("", ""))[0] != sampled:
        _fingerprints[module] = sampled, hash_tensors(kind, state)
    return _fingerprints[module][1]


def hash_tensors(what: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(what.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
