"""SAE activations of the pooled tokens of texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from ..modeling.autoencoder_sparserm import SparseAutoencoder

ENCODED_TOKENS = 1024  # tokens that are encoded at once, and at most one text more


@dataclass(frozen=True)
class TokenActivations:
    """Activations of K latents on the pooled tokens of n texts.

    Attributes:
        texts: (n,) numbers of the texts, ascending.
        starts: (n + 1,) the tokens of text i are the rows `starts[i]` to `starts[i + 1]`.
        values: (tokens, K) the activations.
    """

    texts: np.ndarray
    starts: np.ndarray
    values: sparse.csr_matrix


def encode_texts(hidden: torch.Tensor, pooled: torch.Tensor, sae: SparseAutoencoder) -> Iterator[torch.Tensor]:
    """Encode the pooled tokens of texts, some texts at a time: (tokens, d_sae) is a large tensor.

    Args:
        hidden: (B, T, d_model) residual streams, not normalised: an SAE does its own normalisation.
        pooled: (B, T) bool: the pooled tokens.
        sae: The SAE.

    Yields:
        The activations (tokens, d_sae) of each text.
    """
    lengths = pooled.sum(1)
    chunks = (lengths.cumsum(0) // ENCODED_TOKENS).unique_consecutive(return_counts=True)[1].tolist()
    for of_chunk in zip(*(tensor.split(chunks) for tensor in (hidden, pooled, lengths)), strict=True):
        tokens, where, counts = of_chunk
        yield from sae.encode(tokens[where].float()).split(counts.tolist())


def mean_and_largest(encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool the activations (tokens, d_sae) of one text: their mean and the largest, (d_sae,) each; zero without any.

    An SAE is trained on single tokens, so its activations are pooled; it never encodes a pooled token.
    """
    if not len(encoded):
        return encoded.new_zeros(encoded.shape[1]), encoded.new_zeros(encoded.shape[1])
    return encoded.mean(0), encoded.amax(0)
