"""Read the residual stream of a base model that is not cut, or put something else in its place while it runs.

Layers are counted from 1: layer L is what the L-th decoder layer puts out. Hooks, not `output_hidden_states`: the last
of those is after the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..modeling.backbone_sparserm import decoder_layers, decoder_of
from ..runtime import pad_texts, plan_batches

Replace = Callable[[torch.Tensor], torch.Tensor]  # (B, T, d_model) to the same shape

BATCH_TOKENS = 512  # padding included: the logits of as many tokens, 256,000 wide, are 0.5 GB


@contextmanager
def replacing(layer: nn.Module, replace: Replace) -> Iterator[None]:
    """While the block runs, a decoder layer puts out what `replace` makes of its output."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # transformers 4
            return (replace(output[0]), *output[1:])
        return replace(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def leading_bos(text: list[int], bos: int | None) -> int:
    """How many begin-of-text tokens a text starts with."""
    return next((i for i, token in enumerate(text) if token != bos), len(text))


def _batches(
    texts: list[list[int]], bos: int | None, device: torch.device, desc: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Token ids, attention mask and the tokens that are looked at, each (B, T).

    Not looked at are begin-of-text tokens and the first token after them: whichever comes first is the attention sink,
    and so the same tokens are compared with and without begin-of-text token.
    """
    batches = plan_batches([len(text) for text in texts], BATCH_TOKENS)
    for batch in tqdm(batches, desc=desc, unit="batch", delay=2, leave=False):
        ids, mask = pad_texts([texts[i] for i in batch], device)
        first = torch.tensor([leading_bos(texts[i], bos) + 1 for i in batch], device=device)
        yield ids, mask, mask.bool() & (torch.arange(ids.shape[1], device=device) >= first[:, None])


@torch.no_grad()
def read_layers(
    decoder: PreTrainedModel, texts: list[list[int]], layers: list[int], bos: int | None, desc: str
) -> dict[int, torch.Tensor]:
    """The residual stream after some layers.

    Args:
        decoder: The base model without its head, with at least as many layers as are named.
        texts: Token ids.
        layers: Counted from 1.
        bos: The begin-of-text token, which is left out together with the first token after it.
        desc: What the progress bar says.

    Returns:
        (N, d_model) float32 tokens by layer, in the same order for each.
    """
    modules = decoder_layers(decoder)
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for ids, mask, looked_at in _batches(texts, bos, decoder.device, desc):

        def reader(layer: int, looked_at: torch.Tensor = looked_at) -> Replace:
            def read(hidden: torch.Tensor) -> torch.Tensor:
                parts[layer].append(hidden[looked_at].float())
                return hidden

            return read

        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(replacing(modules[layer - 1], reader(layer)))
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    return {layer: torch.cat(tokens) for layer, tokens in parts.items()}


@torch.no_grad()
def next_token_loss(
    model: PreTrainedModel,
    texts: list[list[int]],
    layer: int,
    patch: Replace,
    longest: float,
    bos: int | None,
    desc: str,
) -> float:
    """Mean cross-entropy, in nats, of the next token where the residual stream is replaced.

    Attention sinks (the first tokens, and those with a norm above `longest`) keep their residual stream, and what
    they predict is not counted: an SAE is not trained on them, and without them the model attends to nothing.

    Args:
        model: A whole causal language model.
        texts: Token ids.
        layer: Counted from 1.
        patch: What becomes of the (N, d_model) tokens that are replaced.
        longest: Norm of the longest token that is no sink.
        bos: The begin-of-text token.
        desc: What the progress bar says.
    """
    module = decoder_layers(decoder_of(model))[layer - 1]
    total, count = 0.0, 0
    for ids, mask, looked_at in _batches(texts, bos, model.device, desc):
        replaced = looked_at

        def replace(hidden: torch.Tensor, looked_at: torch.Tensor = looked_at) -> torch.Tensor:
            nonlocal replaced
            replaced = looked_at & (hidden.float().norm(dim=-1) <= longest)
            hidden = hidden.clone()
            hidden[replaced] = patch(hidden[replaced].float()).to(hidden.dtype)
            return hidden

        with replacing(module, replace):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, vocabulary)
        counted = replaced[:, :-1] & mask[:, 1:].bool()
        losses = nn.functional.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="sum")
        total, count = total + losses.item(), count + int(counted.sum())
    return total / max(count, 1)
