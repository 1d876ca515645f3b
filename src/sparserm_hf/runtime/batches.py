"""runtime.batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def batch_tokens(device: torch.device) -> int:
    """Most tokens of a batch, padding included."""
    return 4096 if device.type == "cpu" else 32_768


def plan_batches(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Batches of numbers of sequences: longest first, alike lengths together, at most `max_tokens` with padding."""
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or width * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


def pad_texts(texts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and attention mask, both (B, T)."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids.to(device), mask.to(device)


def common_prefix_length(a: Any, b: Any) -> int:
    """Number of leading items that two sequences have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
