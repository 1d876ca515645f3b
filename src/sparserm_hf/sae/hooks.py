"""Collect the residual stream of a complete base model, or replace it during a forward pass.

Layers are counted from 1: layer L is the output of the L-th decoder layer. Forward hooks are used instead of
`output_hidden_states`, whose last entry comes after the final norm.
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
from ..runtime import SparseRMError, pad_texts, plan_batches

Replace = Callable[[torch.Tensor], torch.Tensor]  # (B, T, d_model) to the same shape

BATCH_TOKENS = 512  # padding included; the logits of so many tokens take 0.5 GB with 256,000 tokens in the vocabulary


@contextmanager
def replacing(layer: nn.Module, replace: Replace) -> Iterator[None]:
    """Replace the (B, T, d_model) output of a decoder layer by `replace(output)` while the block runs.

    Example:
        >>> layer = nn.Identity()
        >>> with replacing(layer, torch.zeros_like):
        ...     print(layer(torch.ones(2)))
        tensor([0., 0.])
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # transformers 4
            return (replace(output[0]), *output[1:])
        return replace(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def check_finite(tokens: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise a `SparseRMError` if residual-stream tokens, computed in `dtype`, hold a number that is not finite."""
    if not torch.isfinite(tokens).all():
        raise SparseRMError(
            f"The residual stream is not finite in {str(dtype).removeprefix('torch.')}: set dtype to float32, or "
            "look for broken weights in the base model."
        )


def count_leading_bos(text: list[int], bos: int | None) -> int:
    """Count the BOS tokens at the start of a text.

    Example:
        >>> count_leading_bos([1, 1, 5, 1], bos=1)
        2
    """
    return next((i for i, token in enumerate(text) if token != bos), len(text))


def _batches(
    texts: list[list[int]], bos: int | None, device: torch.device, desc: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield token ids, attention mask and the mask of the selected tokens, each (B, T).

    BOS tokens and the first token after them are not selected. The first token of a text is its attention sink, and
    with this rule the same tokens are selected with and without a BOS token.
    """
    batches = plan_batches([len(text) for text in texts], BATCH_TOKENS)
    for batch in tqdm(batches, desc=desc, unit="batch", delay=2, leave=False):
        ids, mask = pad_texts([texts[i] for i in batch], device)
        first = torch.tensor([count_leading_bos(texts[i], bos) + 1 for i in batch], device=device)
        yield ids, mask, mask.bool() & (torch.arange(ids.shape[1], device=device) >= first[:, None])


@torch.no_grad()
def collect_residual_streams(
    decoder: PreTrainedModel, texts: list[list[int]], layers: list[int], bos: int | None, desc: str
) -> dict[int, torch.Tensor]:
    """Collect the residual stream after some layers.

    Args:
        decoder: Base model without its language model head.
        texts: Token ids of each text.
        layers: Numbers of the layers, counted from 1.
        bos: Id of the BOS token, if there is one. BOS tokens and the first token after them are left out.
        desc: Label of the progress bar.

    Returns:
        (N, d_model) float32 tokens for each layer, in the same order.
    """
    modules = decoder_layers(decoder)
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for ids, mask, selected in _batches(texts, bos, decoder.device, desc):

        def collector(layer: int, selected: torch.Tensor = selected) -> Replace:
            def collect(hidden: torch.Tensor) -> torch.Tensor:
                parts[layer].append(hidden[selected].float())
                return hidden

            return collect

        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(replacing(modules[layer - 1], collector(layer)))
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
    """Compute the mean cross-entropy of the next token, in nats, with a patched residual stream.

    Attention sinks (first tokens, and tokens with a norm above `longest`) are neither patched nor counted: an SAE is
    not trained on them, and a model without its sinks attends to nothing.

    Args:
        model: Complete causal language model.
        texts: Token ids of each text.
        layer: Layer whose output is patched, counted from 1.
        patch: Function from (N, d_model) residual-stream tokens to their replacements.
        longest: Largest norm of a token that is no attention sink.
        bos: Id of the BOS token, if there is one.
        desc: Label of the progress bar.
    """
    module = decoder_layers(decoder_of(model))[layer - 1]
    total, count = 0.0, 0
    for ids, mask, selected in _batches(texts, bos, model.device, desc):
        replaced = selected

        def replace(hidden: torch.Tensor, selected: torch.Tensor = selected) -> torch.Tensor:
            nonlocal replaced
            replaced = selected & (hidden.float().norm(dim=-1) <= longest)
            hidden = hidden.clone()
            hidden[replaced] = patch(hidden[replaced].float()).to(hidden.dtype)
            return hidden

        with replacing(module, replace):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # (B, T, vocabulary)
        counted = replaced[:, :-1] & mask[:, 1:].bool()
        losses = nn.functional.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="sum")
        total, count = total + losses.item(), count + int(counted.sum())
    return total / max(count, 1)
