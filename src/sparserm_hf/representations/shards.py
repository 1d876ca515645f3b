"""What the base model says of texts, as it lies in the cache: read shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import safe_open
from scipy import sparse

from .activations import TokenActivations


class Shard(Protocol):
    """What the base model says of n texts."""

    @property
    def mean(self) -> np.ndarray:
        """(n, d_model) float32, mean of the pooled tokens, normalised as the model's configuration says."""

    @property
    def mean_activation(self) -> sparse.csr_matrix:
        """(n, d_sae) mean SAE activation over the pooled tokens."""

    @property
    def max_activation(self) -> sparse.csr_matrix:
        """(n, d_sae) largest one."""

    @property
    def token_activation(self) -> sparse.csr_matrix:
        """(tokens, d_sae) SAE activations of the pooled tokens of the first texts."""

    @property
    def token_texts(self) -> np.ndarray:
        """(tokens,) number of the text that each of these tokens is of."""


@dataclass(frozen=True)
class StoredShard:
    """A shard in a file, of which no more is read than what is asked for; `Shard` says what that may be."""

    path: Path
    d_sae: int

    @property
    def mean(self) -> np.ndarray:  # noqa: D102
        return self._read("mean")[0]

    @property
    def mean_activation(self) -> sparse.csr_matrix:  # noqa: D102
        return self._activations("pooled", "values")

    @property
    def max_activation(self) -> sparse.csr_matrix:  # noqa: D102
        return self._activations("pooled", "max_values")

    @property
    def token_activation(self) -> sparse.csr_matrix:  # noqa: D102
        return self._activations("token", "values")

    @property
    def token_texts(self) -> np.ndarray:  # noqa: D102
        return self._read("token_texts")[0]

    def _read(self, *names: str) -> list[np.ndarray]:
        with safe_open(self.path, "numpy") as file:
            return [file.get_tensor(name) for name in names]

    def _activations(self, rows: str, name: str) -> sparse.csr_matrix:
        values, columns, starts = self._read(*(f"{rows}_{part}" for part in (name, "columns", "starts")))
        return sparse.csr_matrix((values, columns, starts), shape=(len(starts) - 1, self.d_sae))


@dataclass(frozen=True)
class Representations:
    """What the base model says of N texts, read shard by shard: in memory is what is asked for.

    Attributes:
        shards: The shards.
        order: (N,) number of the text in each row of the shards, one after the other.
    """

    shards: Sequence[Shard]
    order: np.ndarray

    def read(self, what: Callable[[Shard], np.ndarray]) -> np.ndarray:
        """Some (n, ...) of each shard as one (N, ...), in the order of the texts."""
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
        """For each latent, on how many of some texts it fires: (d_sae,) for each list of numbers of texts."""
        times = np.stack([np.bincount(side, minlength=len(self.order)) for side in sides])  # each text is listed
        counts, start = 0, 0
        for shard in self.shards:
            fires = (shard.mean_activation > 0).astype(np.int64)
            stop = start + fires.shape[0]
            counts = counts + fires.T @ times[:, self.order[start:stop]].T  # (d_sae, sides)
            start = stop
        return list(np.asarray(counts).T)

    def token_activations(self, latents: Sequence[int]) -> TokenActivations:
        """Activations of K latents on the pooled tokens of the first texts; those without a token are left out."""
        texts = np.concatenate([shard.token_texts for shard in self.shards])
        values = sparse.vstack([shard.token_activation[:, latents] for shard in self.shards], "csr")
        order = np.argsort(texts, kind="stable")
        numbers, counts = np.unique(texts, return_counts=True)
        return TokenActivations(numbers, np.concatenate([[0], counts.cumsum()]), values[order])
