"""From representations to what heads read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .modeling.configuration_sparserm import READINGS
from .shards import Representations, Shard

# What is read of each selected latent, by the option `features`.
FEATURES = {
    "projection": ("mean_projection",),
    "activation": ("mean_activation",),
    "both": ("mean_projection", "mean_activation"),
    "all": READINGS,
}


def read_features(
    texts: Representations, directions: np.ndarray, latents: Sequence[int] | np.ndarray, readings: Sequence[str]
) -> np.ndarray:
    """Features of all texts, (N, readings x K) in float64, in the order of `SparseRMConfig.readings`.

    Args:
        texts: Representations of N texts.
        directions: (K, d_model) decoder directions of the latents.
        latents: (K,) their ids.
        readings: Some of ``configuration_sparserm.READINGS``.
    """

    def of_shard(shard: Shard) -> np.ndarray:
        features = []
        for reading in readings:
            if reading.endswith("projection"):
                z = getattr(shard, reading.removesuffix("_projection"))
                features.append(z.astype(np.float64) @ directions.T)
            else:
                features.append(getattr(shard, reading)[:, latents].toarray().astype(np.float64))
        return np.concatenate(features, axis=1)

    return texts.read(of_shard)
