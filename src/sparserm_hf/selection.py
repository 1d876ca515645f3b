"""Which features of which latents tell chosen from rejected responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .errors import SparseRMError

CHUNK = 8192  # latents whose projections are held at once


@dataclass(frozen=True)
class Selection:
    """The selected features, each a latent and what is read of it.

    Attributes:
        latents: (F,) id of each feature's latent: those selected for the chosen side first, largest separation
            first, then those for the rejected side, largest separation last.
        readings: F of ``configuration_sparserm.READINGS``.
        sides: F times `chosen` or `rejected`: the side that the feature was selected for.
        separations: (F,) how well each separates chosen from rejected responses.
    """

    latents: np.ndarray
    readings: tuple[str, ...]
    sides: tuple[str, ...]
    separations: np.ndarray


def _extremes(separation: np.ndarray, live: np.ndarray, k: int, what: str) -> np.ndarray:
    """Places of the K largest and the K smallest separations; among equals, smaller places go to the chosen side."""
    places = np.flatnonzero(live)
    if k < 1 or 2 * k > len(places):
        raise SparseRMError(
            f"K = {k} asks for {2 * k} {what}, but {len(places)} of {len(live)} can be told from zero on these pairs: "
            f"choose K between 1 and {len(places) // 2}."
        )
    order = places[np.argsort(-separation[places], kind="stable")]
    return np.concatenate([order[:k], order[len(order) - k :]])


def select_by_frequency(
    chosen: sparse.csr_matrix, rejected: sparse.csr_matrix, k: int, readings: Sequence[str]
) -> Selection:
    """Select the K latents with the largest mu_w - mu_l and the K with the largest mu_l - mu_w, all read alike.

    mu_w is the share of chosen responses on which a latent fires, mu_l that of rejected ones (arXiv 2511.07896).
    Latents that never fire cannot be selected.

    Args:
        chosen: (N, d_sae) activations of the chosen responses.
        rejected: (N, d_sae) activations of the rejected responses.
        k: Latents to select on either side.
        readings: What is read of each selected latent.

    Raises:
        SparseRMError: Fewer than 2K latents fire at all.
    """
    mu_w, mu_l = (np.asarray((side > 0).mean(axis=0)).ravel() for side in (chosen, rejected))  # (d_sae,)
    picked = _extremes(mu_w - mu_l, mu_w + mu_l > 0, k, "latents")
    sides = ("chosen",) * k + ("rejected",) * k
    return Selection(
        np.tile(picked, len(readings)),
        tuple(name for name in readings for _ in picked),
        sides * len(readings),
        np.tile((mu_w - mu_l)[picked], len(readings)),
    )


def select_by_effect(effects: Mapping[str, np.ndarray], k: int) -> Selection:
    """Select the K features with the largest and the K with the smallest paired effect, over all readings at once.

    Args:
        effects: By reading, the (d_sae,) effects of all latents.
        k: Features to select on either side.

    Raises:
        SparseRMError: Fewer than 2K features differ within any pair.
    """
    separation = np.concatenate(list(effects.values()))
    names = [name for name, effect in effects.items() for _ in effect]
    latents = np.concatenate([np.arange(len(effect)) for effect in effects.values()])
    picked = _extremes(separation, separation != 0, k, "features")
    return Selection(
        latents[picked],
        tuple(names[i] for i in picked),
        ("chosen",) * k + ("rejected",) * k,
        separation[picked],
    )


def projection_effects(differences: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Paired effect of each latent's projection: mean over standard deviation of <z_w - z_l, d_j>.

    That is the paired t statistic over sqrt(N). The N x d_sae projections are never held at once.

    Args:
        differences: (N, d_model) representations, chosen minus rejected.
        directions: (d_sae, d_model) decoder directions.

    Returns:
        (d_sae,)
    """
    differences = differences.astype(np.float32)
    effects = []
    for chunk in np.split(directions, range(CHUNK, len(directions), CHUNK)):
        projections = differences @ chunk.T.astype(np.float32)  # (N, chunk)
        effects.append(_effect(projections.mean(0), projections.std(0)))
    return np.concatenate(effects)


def activation_effects(chosen: sparse.csr_matrix, rejected: sparse.csr_matrix) -> np.ndarray:
    """The same, (d_sae,), for (N, d_sae) sparse activations."""
    differences = chosen - rejected
    mean = np.asarray(differences.mean(0)).ravel()
    square = np.asarray(differences.multiply(differences).mean(0)).ravel()
    return _effect(mean, np.sqrt(np.maximum(square - mean**2, 0.0)))


def _effect(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    # A feature that differs by the same amount in every pair, such as none at all, gives no effect.
    return np.divide(mean, deviation, out=np.zeros_like(mean), where=deviation > 1e-8)
