"""Shards of representations as files in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import sparse

from ..base_models import hash_tensors
from ..runtime import replacing_file

DIGEST = "digest"  # metadata of a shard: a hash of its path and tensors


@dataclass(frozen=True)
class StoredShard:
    """A `Shard` in a file. Each property reads only its own tensors from the file.

    Attributes:
        path: The file.
        d_sae: Number of latents of the SAE; 0 without one.
    """

    path: Path
    d_sae: int

    @property
    def mean(self) -> np.ndarray:  # noqa: D102
        return self._read("mean")[0]

    @property
    def prompt_mean(self) -> np.ndarray:  # noqa: D102
        return self._read("prompt_mean")[0]

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


class SparseRows:
    """Rows of a sparse matrix, collected in the compressed form that `StoredShard` reads.

    Example:
        >>> rows = SparseRows()
        >>> dense = torch.tensor([[0.0, 3.0], [4.0, 5.0]])
        >>> rows.add(dense > 0, values=dense)
        >>> for name, tensor in rows.tensors("token").items():
        ...     print(name, tensor.tolist())
        token_columns [1, 0, 1]
        token_values [3.0, 4.0, 5.0]
        token_starts [0, 1, 3]
    """

    def __init__(self) -> None:
        self.columns: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int32)]
        self.counts: list[torch.Tensor] = [torch.zeros(1, dtype=torch.int64)]
        self.values: dict[str, list[torch.Tensor]] = {}

    def add(self, where: torch.Tensor, **values: torch.Tensor) -> None:
        """Append n rows.

        Args:
            where: (n, columns) bool: the entries to store.
            values: (n, columns) dense rows, by the name of their tensor.
        """
        self.counts.append(where.sum(-1).cpu())
        self.columns.append(where.nonzero()[:, 1].int().cpu())
        for name, dense in values.items():
            self.values.setdefault(name, [torch.zeros(0)]).append(dense[where].cpu())

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return columns, values and row starts, under names that begin with `prefix`."""
        joined = {"columns": self.columns, **self.values}
        whole = {f"{prefix}_{name}": torch.cat(parts) for name, parts in joined.items()}
        return whole | {f"{prefix}_starts": torch.cat(self.counts).cumsum(0)}


def save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write the tensors of a shard with their digest, all or nothing."""
    with replacing_file(path) as temporary:
        save_file(tensors, temporary, {DIGEST: _digest(path, tensors)})


def is_whole(path: Path) -> bool:
    """Tell if a shard is there, complete and without a flipped bit."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata()[DIGEST] == _digest(path, tensors)
    except Exception:  # a broken file can raise anything
        return False


def _digest(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    return hash_tensors(f"{path.parent.name}/{path.name}", tensors)
