"""From representations to what heads read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .representations import Representations
from .selection import Selection, activation_effects, projection_effects, select_by_effect, select_by_frequency

# What may be read of a latent, by the option `features`.
FEATURES = {
    "all": ("mean_projection", "last_projection", "mean_activation", "max_activation"),
    "projection": ("mean_projection",),
    "activation": ("mean_activation",),
    "both": ("mean_projection", "mean_activation"),
}


def select_features(
    texts: Representations,
    directions: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    k: int,
    method: str,
    readings: Sequence[str],
) -> Selection:
    """Select features by N pairs.

    Args:
        texts: Representations of all texts.
        directions: (d_sae, d_model) decoder directions of all latents.
        chosen: (N,) numbers of the chosen texts.
        rejected: (N,) numbers of the rejected ones.
        k: Features, or latents where the method is `frequency`, on either side.
        method: `effect` or `frequency`.
        readings: What may be read of a latent.

    Raises:
        SparseRMError: There are too few to select from.
    """
    if method == "frequency":
        return select_by_frequency(texts.mean_activation[chosen], texts.mean_activation[rejected], k, readings)
    effects = {}
    for reading in readings:
        what = source_of(texts, reading)
        if reading.endswith("projection"):
            effects[reading] = projection_effects(what[chosen] - what[rejected], directions)
        else:
            effects[reading] = activation_effects(what[chosen], what[rejected])
    return select_by_effect(effects, k)


def source_of(texts: Representations, reading: str) -> Any:
    """What a reading is computed from: (N, d_model) representations or (N, d_sae) sparse activations."""
    if reading.endswith("projection"):
        return getattr(texts, reading.removesuffix("_projection"))
    return getattr(texts, reading)


def read_features(
    texts: Representations, directions: np.ndarray, latents: np.ndarray, readings: Sequence[str]
) -> np.ndarray:
    """(N, F) features of all texts, in float64.

    Args:
        texts: Representations of N texts.
        directions: (d_sae, d_model) decoder directions of all latents.
        latents: (F,) latent of each feature.
        readings: F names.
    """
    features = np.empty((len(texts.mean), len(latents)))
    for reading in set(readings):
        columns = np.flatnonzero(np.array(readings) == reading)
        what = source_of(texts, reading)
        if reading.endswith("projection"):
            features[:, columns] = what.astype(np.float64) @ directions[latents[columns]].T
        else:
            features[:, columns] = what[:, latents[columns]].toarray()
    return features
