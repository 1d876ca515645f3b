"""Groups of preference pairs that must not be split between training and validation."""

from __future__ import annotations

import json
from collections.abc import Hashable

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ..modeling.response_sparserm import occurrences
from ..runtime import common_prefix_length
from .encoding import ChatEncoder, TokenizedText
from .preferences import Preference


def prompt_key(pair: Preference, texts: list[TokenizedText], encoder: ChatEncoder) -> Hashable:
    """Return a key that is the same for all pairs with the same prompt; None if the pair has no prompt."""
    chosen, rejected = texts
    turn = min(chosen.turn, rejected.turn)
    if turn:
        # The last header that both texts share: two dialogues may differ before their last turn.
        shared = common_prefix_length(chosen.ids, rejected.ids)
        starts = (start for start, _ in occurrences(chosen.ids, encoder.headers, 0, shared) if start <= turn)
        return chosen.ids[: max(starts, default=turn)]
    written = pair.prompt.strip() if isinstance(pair.prompt, str) else pair.prompt
    return json.dumps(written, default=str) if written else None


def group_pairs(prompts: list[Hashable], texts: list[tuple[int, int]]) -> list[int]:
    """Number the groups of pairs; pairs with the same prompt, or with a text in common, are in one group.

    Args:
        prompts: The `prompt_key` of each pair; None for a pair without a prompt.
        texts: The indices of the two texts of each pair.

    Returns:
        The group number of each pair.
    """
    keys: dict[Hashable, int] = {}  # prompts and texts, which pairs may share
    edges = [
        (pair, keys.setdefault(key, len(keys)))
        for pair, (prompt, sides) in enumerate(zip(prompts, texts, strict=True))
        for key in [*(("text", side) for side in sides), *([("prompt", prompt)] if prompt is not None else [])]
    ]
    pairs, shared = np.array(edges).T
    size = len(prompts) + len(keys)
    graph = sparse.coo_array((np.ones(len(edges)), (pairs, len(prompts) + shared)), shape=(size, size))
    numbers: dict[int, int] = {}  # in the order of the pairs
    labels = connected_components(graph, directed=False)[1][: len(prompts)]
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]
