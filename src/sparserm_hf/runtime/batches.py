"""Batches of token ids: plan, size and pad them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def batch_tokens(device: torch.device) -> int:
    """Choose the batch size of a device, in tokens with padding.

    Example:
        >>> batch_tokens(torch.device("cpu"))
        4096
    """
    return 4096 if device.type == "cpu" else 32_768


def plan_batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Group sequences of similar length into batches, the longest first.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Batch size in tokens, padding included. A longer sequence is a batch of its own.

    Returns:
        Numbers of the sequences in each batch.

    Example:
        >>> plan_batches([3, 9, 4, 10], 20)
        [[3, 1], [2, 0]]
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or width * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


def pad_texts(texts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad texts on the right.

    Args:
        texts: Token ids of B texts.
        device: Device of the result.

    Returns:
        Token ids and attention mask, both (B, T).

    Example:
        >>> ids, mask = pad_texts([[5, 6, 7], [8]], torch.device("cpu"))
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids.to(device), mask.to(device)


def common_prefix_length(a: Any, b: Any) -> int:
    """Count the leading items that two sequences share.

    Example:
        >>> common_prefix_length([1, 2, 3], [1, 2, 4, 5])
        2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
