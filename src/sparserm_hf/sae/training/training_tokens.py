"""Tokens to train an SAE on: the residual stream of a cut base model, without attention sinks, shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from ...modeling.backbone_sparserm import residual_stream
from ...runtime import batch_tokens, pad_texts, plan_batches
from ..hooks import check_finite
from ..sinks import SINK_RATIO, ordinary_tokens

# Maps the position of a batch in an endless sequence to its (N, d_model) tokens, the same at every call.
TokenSource = Callable[[int], torch.Tensor]


class ResidualTokens:
    """A `TokenSource` of residual-stream tokens, each divided by its root mean square.

    The first token of each text and every token with a norm above `sink_ratio` times the batch's median are left out:
    they carry nearly all of the variance.

    Args:
        base_model: Base model that `modeling.backbone_sparserm.cut_base_model` has cut.
        texts: Token ids of each text. The texts are repeated, with their batches in another order each time.
        sink_ratio: Multiple of the median norm above which a token is an attention sink.
        seed: Seed of the order of the batches.
        max_tokens: Maximum number of tokens of a batch, padding included; by default a number that suits the device.
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
        """Return the number of batches that hold each text once."""
        return len(self.batches)

    @torch.no_grad()
    def __call__(self, position: int) -> torch.Tensor:
        """Return the (N, d_model) float32 tokens of the batch at a position."""
        epoch, number = divmod(position, len(self))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + epoch))
        ids, mask = pad_texts([self.texts[i] for i in self.batches[order[number]]], self.base_model.device)
        hidden = residual_stream(self.base_model, ids, mask)
        mask[:, 0] = 0
        tokens = hidden[mask.bool()].float()  # (N, d_model)
        check_finite(tokens, self.base_model.dtype)
        rms = tokens.pow(2).mean(-1, keepdim=True).sqrt()
        return (tokens / rms)[ordinary_tokens(rms.squeeze(-1), self.sink_ratio)]


def shuffled_tokens(
    source: TokenSource, position: int, buffer_tokens: int, step_tokens: int, seed: int
) -> tuple[torch.Tensor, int]:
    """Fill a buffer with the batches from a position on, and shuffle its tokens.

    The position is all that one buffer hands to the next, so a run can be resumed between any two buffers. The tokens
    that do not fill a last step are dropped.

    Args:
        source: Source of the tokens.
        position: Position of the first batch.
        buffer_tokens: Minimum number of tokens of a full buffer.
        step_tokens: Number of tokens of a step; a multiple of it is returned.
        seed: Seed of the shuffling. The order also depends on the position.

    Returns:
        (N, d_model) tokens, and the position of the next batch.

    Example:
        >>> tokens, position = shuffled_tokens(lambda i: torch.full((3, 1), float(i)), 5, 7, 4, seed=0)
        >>> tokens.shape, position
        (torch.Size([8, 1]), 8)
    """
    generator = torch.Generator().manual_seed(seed + position)
    parts, size = [], 0
    while size < buffer_tokens:
        parts.append(source(position))
        size += len(parts[-1])
        position += 1
    order = torch.randperm(size, generator=generator)[: size - size % step_tokens]
    tokens = torch.cat(parts)
    del parts
    return tokens[order.to(tokens.device)], position
