"""Representations of texts, read shard by shard, so that they need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from .activations import TokenActivations


class Shard(Protocol):
    """Representations and SAE activations of n texts.

    Example:
        ```python
        from sparserm_hf.representations import Shard


        def mean_norm(shard: Shard) -> float:
            return float((shard.mean**2).sum(1).mean() ** 0.5)
        ```
    """

    @property
    def mean(self) -> np.ndarray:
        """(n, d_model) float32: pooled representations, normalised as the model's configuration says."""

    @property
    def prompt_mean(self) -> np.ndarray:
        """(n, d_model) float32: average tokens of the prompts, where `Pooling.prompt_marks` are given."""

    @property
    def mean_activation(self) -> sparse.csr_matrix:
        """(n, d_sae): mean activation of each latent over the pooled tokens of a text."""

    @property
    def max_activation(self) -> sparse.csr_matrix:
        """(n, d_sae): largest activation of each latent over the pooled tokens of a text."""

    @property
    def token_activation(self) -> sparse.csr_matrix:
        """(tokens, d_sae): activations on the pooled tokens of the first texts."""

    @property
    def token_texts(self) -> np.ndarray:
        """(tokens,): the number of the text of each row of `token_activation`."""


@dataclass(frozen=True)
class ShardRows:
    """Some texts of a shard, as a shard of their own.

    Attributes:
        shard: The shard of n texts.
        rows: (m,) rows of these texts in the shard.
        numbers: New number of each text by its old number; -1 for a text that is left out.
    """

    shard: Shard
    rows: np.ndarray
    numbers: np.ndarray

    @property
    def mean(self) -> np.ndarray:  # noqa: D102
        return self.shard.mean[self.rows]

    @property
    def prompt_mean(self) -> np.ndarray:  # noqa: D102
        return self.shard.prompt_mean[self.rows]

    @property
    def mean_activation(self) -> sparse.csr_matrix:  # noqa: D102
        return self.shard.mean_activation[self.rows]

    @property
    def max_activation(self) -> sparse.csr_matrix:  # noqa: D102
        return self.shard.max_activation[self.rows]

    @property
    def token_activation(self) -> sparse.csr_matrix:  # noqa: D102
        return self.shard.token_activation[self.numbers[self.shard.token_texts] >= 0]

    @property
    def token_texts(self) -> np.ndarray:  # noqa: D102
        numbers = self.numbers[self.shard.token_texts]
        return numbers[numbers >= 0]


@dataclass(frozen=True)
class Representations:
    """Representations of N texts in shards.

    Attributes:
        shards: The shards.
        order: (N,) number of the text of each row of the shards, one shard after another.

    Example:
        >>> from types import SimpleNamespace
        >>> shards = [SimpleNamespace(mean=np.array([[2.0], [0.0]])), SimpleNamespace(mean=np.array([[1.0]]))]
        >>> Representations(shards, np.array([2, 0, 1])).read(lambda shard: shard.mean)
        array([[0.],
               [1.],
               [2.]])
    """

    shards: Sequence[Shard]
    order: np.ndarray

    def take(self, texts: np.ndarray) -> Representations:
        """Take the representations of some of the texts, in another order; nothing is copied.

        Args:
            texts: (M,) numbers of the texts, each once.
        """
        numbers = np.full(len(self.order), -1)
        numbers[texts] = np.arange(len(texts))
        shards, orders, start = [], [], 0
        for shard in self.shards:
            stop = start + len(shard.mean)
            renumbered = numbers[self.order[start:stop]]  # (n,)
            rows = np.flatnonzero(renumbered >= 0)
            if len(rows):
                shards.append(ShardRows(shard, rows, numbers))
                orders.append(renumbered[rows])
            start = stop
        return Representations(shards, np.concatenate(orders))

    def read(self, what: Callable[[Shard], np.ndarray]) -> np.ndarray:
        """Apply a function to each shard, and join the results in the order of the texts.

        Args:
            what: Maps a shard of n texts to an array (n, ...).

        Returns:
            An array (N, ...).
        """
        start, whole = 0, None
        for shard in self.shards:
            part = what(shard)
            if whole is None:
                whole = np.empty((len(self.order), *part.shape[1:]), part.dtype)
            whole[self.order[start : start + len(part)]] = part
            start += len(part)
        assert whole is not None
        return whole

    def count_firing(self, *sides: np.ndarray) -> list[np.ndarray]:
        """Count the texts on which each latent fires.

        Args:
            sides: Lists of numbers of texts. A text that is listed twice counts twice.

        Returns:
            (d_sae,) counts for each list.
        """
        times = np.stack([np.bincount(side, minlength=len(self.order)) for side in sides])  # (sides, N)
        counts, start = 0, 0
        for shard in self.shards:
            fires = (shard.mean_activation > 0).astype(np.int64)
            stop = start + fires.shape[0]
            counts = counts + fires.T @ times[:, self.order[start:stop]].T  # (d_sae, sides)
            start = stop
        return list(np.asarray(counts).T)

    def token_activations(self, latents: Sequence[int]) -> TokenActivations:
        """Return the activations of K latents on the pooled tokens of the first texts.

        Args:
            latents: (K,) numbers of latents.

        Returns:
            The activations, without texts that have no pooled token.
        """
        texts = np.concatenate([shard.token_texts for shard in self.shards])
        values = sparse.vstack([shard.token_activation[:, latents] for shard in self.shards], "csr")
        order = np.argsort(texts, kind="stable")
        numbers, counts = np.unique(texts, return_counts=True)
        return TokenActivations(numbers, np.concatenate([[0], counts.cumsum()]), values[order])
