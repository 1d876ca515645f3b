"""Fingerprints of modules, which tell one set of weights from another."""

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
    """Hash the type of a module with the names and values of its tensors.

    Equal weights have equal fingerprints, wherever they were loaded from. All weights are hashed the first time; later
    calls return that fingerprint as long as a sample of each tensor is unchanged.

    Args:
        module: Any module, quantised or not.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = [nn.init.zeros_(parameter) for parameter in layer.parameters()]
        >>> fingerprint_module(layer)
        'de00a080acd0b869c1639793aa2803ef'
    """
    state = plain_tensors(module.state_dict())
    kind = type(module).__name__
    sampled = hash_tensors(kind, {name: sample(tensor) for name, tensor in state.items()})
    if _fingerprints.get(module, ("", ""))[0] != sampled:
        _fingerprints[module] = sampled, hash_tensors(kind, state)
    return _fingerprints[module][1]


def hash_tensors(what: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash named tensors, independently of their order.

    Args:
        what: Text that enters the hash too.
        tensors: The tensors by their names.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(what.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
