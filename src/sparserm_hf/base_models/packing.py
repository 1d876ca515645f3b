"""Texts that begin alike, such as two responses to one prompt, run as one sequence: the prompt is computed once."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..modeling.backbone_sparserm import decoder_of
from ..runtime import attention_of, common_prefix_length, keeps_state

if TYPE_CHECKING:
    from peft import PeftModel

MAX_TOKENS = 2048  # of a family: attention is quadratic in them
MAX_MEMBERS = 16


@dataclass(frozen=True)
class Layout:
    """Families as a batch of B sequences of T tokens: first what is shared, then what each member has of its own.

    Attributes:
        ids: (B, T) token ids, padded with zeros.
        positions: (B, T) of each token, counted as if its text were alone.
        sees: (B, T, T) whether a query sees a key: members do not attend to each other.
        places: Of each text, in the order of the families' members, its row and where its tokens are in it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    places: list[tuple[int, torch.Tensor]]

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """(B, 1, T, T), to be added to the attention's logits."""
        return torch.zeros(self.sees.shape, dtype=dtype).masked_fill(~self.sees, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class Family:
    """Texts with the same first tokens.

    Attributes:
        members: Numbers of the texts.
        prefix: Number of tokens that they share.
        length: Tokens of all of them, the shared ones counted once.
    """

    members: tuple[int, ...]
    prefix: int
    length: int


def find_families(texts: Sequence[list[int]] | Sequence[tuple[int, ...]]) -> list[Family]:
    """Group texts so that the fewest tokens have to be computed; each text is in one family.

    In their sorted order, where alike beginnings stand together, the cheapest way to cut the texts into families is
    found by dynamic programming. Families end at `MAX_TOKENS` and `MAX_MEMBERS`.
    """
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    lengths = [len(texts[i]) for i in order]
    shared = [common_prefix_length(texts[a], texts[b]) for a, b in itertools.pairwise(order)]  # with the next one
    cost, last = [0], [Family((), 0, 0)]  # of the first texts: tokens to compute, and their last family
    for end in range(1, len(order) + 1):
        prefix = total = lengths[end - 1]
        best = cost[end - 1] + total
        family = (end - 1, prefix, total)
        for start in range(end - 2, max(end - 1 - MAX_MEMBERS, -1), -1):
            prefix = min(prefix, shared[start])
            total += lengths[start]
            length = total - (end - start - 1) * prefix
            if prefix == 0 or length > MAX_TOKENS:
                break
            if cost[start] + length < best:
                best, family = cost[start] + length, (start, prefix, length)
        cost.append(best)
        last.append(Family(tuple(order[family[0] : end]), *family[1:]))
    families = []
    end = len(order)
    while end:
        families.append(last[end])
        end -= len(last[end].members)
    return families[::-1]


def can_pack(model: PreTrainedModel | PeftModel, longest: int) -> bool:
    """Whether a base model can run with a mask and positions of our own.

    Not in flash attention, nor in a window below the texts, nor where tokens meet in other ways than attention: a
    recurrent state or a convolution would run on from one member of a family into the next.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)  # the latter GPT-Neo's
    kinds = getattr(config, "layer_types", None) or ()
    return (
        attention_of(config) in ("sdpa", "eager")
        and not keeps_state(model)
        and set(kinds) <= {"full_attention", "sliding_attention"}
        and (window is None or window >= longest)
        and "position_ids" in inspect.signature(type(decoder_of(model)).forward).parameters
        and not getattr(config, "alibi", False)  # which would count positions by the mask
    )


def lay_out(texts: Sequence[Sequence[int]], families: Sequence[Family]) -> Layout:
    """Lay families out as a batch."""
    width = max(family.length for family in families)
    ids = torch.zeros(len(families), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    owner = torch.full_like(ids, -1)  # member that a token belongs to; shared tokens belong to all, padding to none
    places: list[tuple[int, torch.Tensor]] = []
    for row, family in enumerate(families):
        prefix = texts[family.members[0]][: family.prefix]
        ids[row, : family.prefix] = torch.tensor(prefix, dtype=torch.long)
        positions[row, : family.prefix] = torch.arange(family.prefix)
        start = family.prefix
        for number, member in enumerate(family.members):
            own = torch.tensor(texts[member][family.prefix :], dtype=torch.long)
            end = start + len(own)
            ids[row, start:end] = own
            positions[row, start:end] = torch.arange(family.prefix, family.prefix + len(own))
            owner[row, start:end] = number
            places.append((row, torch.cat([torch.arange(family.prefix), torch.arange(start, end)])))
            start = end
    index = torch.arange(width)
    shared = index[None] < torch.tensor([family.prefix for family in families])[:, None]  # (B, T)
    alike = (owner[:, :, None] == owner[:, None, :]) | shared[:, None, :]  # (B, query, key)
    return Layout(ids, positions, alike & (index[:, None] >= index[None, :]), places)


def run_packed(
    base_model: PreTrainedModel, texts: Sequence[Sequence[int]], families: Sequence[Family]
) -> list[torch.Tensor]:
    """The residual stream of each text, (tokens, d_model), in the order of the families' members."""
    device, layout = base_model.device, lay_out(texts, families)
    hidden = base_model(
        input_ids=layout.ids.to(device),
        attention_mask=layout.mask(base_model.dtype).to(device),
        position_ids=layout.positions.to(device),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state  # (B, T, d_model)
    return [hidden[row, where.to(device)] for row, where in layout.places]
