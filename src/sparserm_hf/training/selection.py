"""Which latents tell chosen from rejected responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..runtime import SparseRMError

K_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)  # up to the paper's
LEAST_K = 8


@dataclass(frozen=True)
class Selection:
    """The selected latents.

    Attributes:
        latents: (2K,) ids: the K that fire more on chosen responses, largest separation first, then the K that fire
            more on rejected ones, largest separation last.
        separations: (2K,) for each, share of chosen minus share of rejected responses on which it fires.
    """

    latents: np.ndarray
    separations: np.ndarray

    @property
    def sides(self) -> list[str]:
        """`chosen` or `rejected` for each latent: the side that it was selected for."""
        half = len(self.latents) // 2
        return ["chosen"] * half + ["rejected"] * half


def select_latents(chosen: np.ndarray, rejected: np.ndarray, pairs: int, k: int) -> Selection:
    """Select the K latents with the largest mu_w - mu_l and the K with the largest mu_l - mu_w.

    mu_w is the share of chosen responses on which a latent fires, mu_l that of rejected ones (arXiv 2511.07896).
    Latents that never fire cannot be selected; among equals, those with smaller ids go to the chosen side.

    Args:
        chosen: (d_sae,) on how many of the chosen responses each latent fires. Counts, not shares: the rounding of
            shares would decide between equals.
        rejected: (d_sae,) on how many of the rejected ones.
        pairs: Number of pairs.
        k: Latents to select on either side.

    Raises:
        SparseRMError: Fewer than 2K latents fire at all.
    """
    live = np.flatnonzero(chosen + rejected)
    if k < 1 or 2 * k > len(live):
        raise SparseRMError(
            f"K = {k} asks for {2 * k} latents, but {len(live)} of the SAE's {len(chosen)} fire on these pairs: "
            f"choose K between 1 and {len(live) // 2}."
        )
    difference = (chosen - rejected)[live]
    order = np.argsort(-difference, kind="stable")
    picked = np.concatenate([order[:k], order[len(order) - k :]])
    return Selection(live[picked], difference[picked] / pairs)


def fewest_latents(accuracies: Mapping[int, float], pairs: int) -> int:
    """Choose the smallest K whose cross-validated accuracy is within one standard error of the best, and at least 8.

    The one-standard-error rule (Breiman et al., 1984, Classification and Regression Trees), with the standard error
    of the best accuracy over the pairs. With fewer than 8 latents on either side less of what an explanation claims
    holds (`benchmarks/claims.py`).

    Args:
        accuracies: Cross-validated accuracy by K.
        pairs: Number of pairs that each was measured on.
    """
    least = min(LEAST_K, max(accuracies))  # a small SAE may not have so many
    tried = {k: accuracy for k, accuracy in accuracies.items() if k >= least}
    best = max(tried.values())
    error = (best * (1 - best) / pairs) ** 0.5
    return min(k for k, accuracy in tried.items() if accuracy >= best - error)
