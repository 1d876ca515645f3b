"""Run texts with a shared prefix as one sequence, so that the prompt of a pair is computed once."""

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

MAX_TOKENS = 2048  # of a family: attention is quadratic in its tokens
MAX_MEMBERS = 16


@dataclass(frozen=True)
class Layout:
    """A batch of B families, each one sequence: first the shared tokens, then the other tokens of each member.

    Attributes:
        ids: (B, T) token ids, padded with zeros.
        positions: (B, T) position of each token in its own text.
        sees: (B, T, T) bool, true where a query attends to a key. Members do not attend to each other.
        places: The row of each text and the columns of its tokens, in the order of the families' members.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    places: list[tuple[int, torch.Tensor]]

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Make the attention mask, (B, 1, T, T): 0 where a query attends to a key, else the lowest number."""
        return torch.zeros(self.sees.shape, dtype=dtype).masked_fill(~self.sees, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class Family:
    """Texts with the same first tokens.

    Attributes:
        members: Numbers of the texts.
        prefix: Number of shared tokens.
        length: Number of tokens of all members, with the shared tokens counted once.
    """

    members: tuple[int, ...]
    prefix: int
    length: int


def find_families(texts: Sequence[list[int]] | Sequence[tuple[int, ...]]) -> list[Family]:
    """Group texts into families so that the fewest tokens have to be computed.

    Sorting puts texts with equal beginnings side by side. Dynamic programming then finds the cheapest division of the
    sorted texts into families of at most `MAX_TOKENS` and `MAX_MEMBERS`.

    Args:
        texts: Token ids of each text.

    Returns:
        Families that hold each text once.

    Example:
        >>> find_families([[1, 2, 3, 4], [7, 8], [1, 2, 3, 5, 6]])
        [Family(members=(0, 2), prefix=3, length=6), Family(members=(1,), prefix=2, length=2)]
    """
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    lengths = [len(texts[i]) for i in order]
    shared = [common_prefix_length(texts[a], texts[b]) for a, b in itertools.pairwise(order)]  # with the next text
    cost, last = [0], [Family((), 0, 0)]  # by number of texts: tokens to compute, and the last family
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
    """Tell if a base model takes the attention mask and the positions of a `Layout`.

    Flash attention takes no such mask. A sliding window would count the tokens of other members. A recurrent state or
    a convolution would run on from one member of a family into the next.

    Args:
        model: The base model, cut or whole.
        longest: Tokens of the longest text.
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
        and not getattr(config, "alibi", False)  # ALiBi would take the positions from the mask
    )


def lay_out(texts: Sequence[Sequence[int]], families: Sequence[Family]) -> Layout:
    """Lay families out as a batch.

    Args:
        texts: Token ids of all texts.
        families: The families of the batch.
    """
    width = max(family.length for family in families)
    ids = torch.zeros(len(families), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    owner = torch.full_like(ids, -1)  # member of each token; -1 for shared tokens and padding
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
    """Run families through a base model.

    Args:
        base_model: A cut base model.
        texts: Token ids of all texts.
        families: The families of the batch.

    Returns:
        (tokens, d_model) residual stream of each text, in the order of the families' members.
    """
    device, layout = base_model.device, lay_out(texts, families)
    hidden = base_model(
        input_ids=layout.ids.to(device),
        attention_mask=layout.mask(base_model.dtype).to(device),
        position_ids=layout.positions.to(device),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state  # (B, T, d_model)
    return [hidden[row, where.to(device)] for row, where in layout.places]
