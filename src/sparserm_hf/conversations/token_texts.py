"""Decode single tokens of a text, such as the pooled ones, to show them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ..modeling.pooling_sparserm import pooled_tokens
from .encoding import TokenizedText


def token_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], t: int) -> str:
    """Decode token `t` with the space before it, which a tokenizer would drop from a token decoded alone."""
    before = str(tokenizer.decode(list(ids[t - 1 : t])))
    return str(tokenizer.decode(list(ids[max(t - 1, 0) : t + 1]))).removeprefix(before)


def pooled_positions(text: TokenizedText, pooling: str) -> list[int]:
    """Positions of the pooled tokens of a text."""
    mask = torch.ones(1, len(text.ids), dtype=torch.long)
    return pooled_tokens(mask, [text.place], pooling)[0].nonzero()[:, 0].tolist()


def pooled_token_texts(tokenizer: PreTrainedTokenizerBase, text: TokenizedText, pooling: str) -> list[str]:
    """Decode the pooled tokens of a text one by one, with their spaces."""
    return [token_text(tokenizer, text.ids, position) for position in pooled_positions(text, pooling)]
