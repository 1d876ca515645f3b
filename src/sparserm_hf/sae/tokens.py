"""The tokens that an SAE is trained on: the residual stream of a cut base model, sinks left out, shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from ..modeling.backbone_sparserm import residual_stream
from ..runtime import SparseRMError, batch_tokens, pad_texts, plan_batches
from .fit import SINK_RATIO

# Gives the (N, d_model) tokens at a position of an endless row of batches, the same at every call.
TokenReader = Callable[[int], torch.Tensor]


def check_finite(tokens: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise a `SparseRMError` where a base model gives something else than numbers."""
    if not torch.isfinite(tokens).all():
        raise SparseRMError(
            f"The residual stream is not finite in {str(dtype).removeprefix('torch.')}: try --dtype float32, or look "
            "for broken weights in the base model."
        )


class ResidualTokens:
    """A `TokenReader` of residual-stream tokens, each divided by its root mean square.

    Left out, because they would be nearly all of the variance: each text's first token, and every token whose norm is
    more than `sink_ratio` times the batch's median.

    Args:
        base_model: A base model that `modeling.backbone_sparserm.cut_base_model` has cut.
        texts: Token ids; repeated, the batches in another order each time.
        sink_ratio: Tokens above this many times the median norm are attention sinks.
        seed: Of the order.
        max_tokens: Of a batch, padding included; by default what suits the device.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        texts: Sequence[Sequence[int]],
        sink_ratio: float = SINK_RATIO,
        seed: int = 0,
        max_tokens: int | None = None,
    ):
        self.base_model, self.texts, self.sink_ratio, self.seed = base_model, texts, sink_ratio, seed
        lengths = [len(text) for text in texts]
        self.batches = plan_batches(lengths, max_tokens or batch_tokens(base_model.device))

    def __len__(self) -> int:
        """Number of batches that hold each text once."""
        return len(self.batches)

    @torch.no_grad()
    def __call__(self, position: int) -> torch.Tensor:
        """(N, d_model) float32 tokens of the batch at a position."""
        epoch, number = divmod(position, len(self))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + epoch))
        ids, mask = pad_texts([self.texts[i] for i in self.batches[order[number]]], self.base_model.device)
        hidden = residual_stream(self.base_model, ids, mask)
        mask[:, 0] = 0
        tokens = hidden[mask.bool()].float()  # (N, d_model)
        check_finite(tokens, self.base_model.dtype)
        rms = tokens.pow(2).mean(-1, keepdim=True).sqrt()
        return (tokens / rms)[(rms < self.sink_ratio * rms.median()).squeeze(-1)]


def shuffled_tokens(
    read: TokenReader, position: int, buffer_tokens: int, step_tokens: int, seed: int
) -> tuple[torch.Tensor, int]:
    """Fill a buffer from a position on and shuffle it.

    Nothing is carried over from one buffer to the next but the position, so a run can be resumed between any two: the
    few tokens that do not fill a step are left out.

    Args:
        read: The tokens.
        position: Where to begin.
        buffer_tokens: Least tokens of a full buffer.
        step_tokens: The number of tokens returned is a multiple of this.
        seed: Of the shuffling, which differs from position to position.

    Returns:
        (N, d_model) tokens, and the position after them.
    """
    generator = torch.Generator().manual_seed(seed + position)
    parts, size = [], 0
    while size < buffer_tokens:
        parts.append(read(position))
        size += len(parts[-1])
        position += 1
    order = torch.randperm(size, generator=generator)[: size - size % step_tokens]
    tokens = torch.cat(parts)
    del parts
    return tokens[order.to(tokens.device)], position
