"""Select the latents that tell chosen from rejected responses, and how many of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime import SparseRMError
from .represented_texts import PairIndices, RepresentedTexts

K_CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)  # the paper uses 128
LEAST_K = 8


@dataclass(frozen=True)
class Selection:
    """The selected latents.

    Attributes:
        latents: (2K,) ids: first the K latents that fire more on chosen responses, largest separation first, then the
            K that fire more on rejected responses, largest separation last.
        separations: (2K,) share of chosen minus share of rejected responses on which each latent fires.
    """

    latents: np.ndarray
    separations: np.ndarray

    @property
    def sides(self) -> list[str]:
        """`chosen` or `rejected` for each latent: the responses on which it fires more."""
        half = len(self.latents) // 2
        return ["chosen"] * half + ["rejected"] * half


def select_latents(chosen: np.ndarray, rejected: np.ndarray, pairs: int, k: int) -> Selection:
    """Select the K latents with the largest mu_w - mu_l and the K with the largest mu_l - mu_w.

    mu_w is the share of chosen responses on which a latent fires, mu_l the share of rejected responses (arXiv
    2511.07896). Latents that never fire cannot be selected. Among equal latents, smaller ids go to the chosen side.

    Args:
        chosen: (d_sae,) number of chosen responses on which each latent fires. Counts, not shares: the rounding of
            shares would decide between equal latents.
        rejected: (d_sae,) number of rejected responses on which each latent fires.
        pairs: Number of pairs.
        k: Number of latents to select on each side.

    Raises:
        SparseRMError: Fewer than 2K latents fire at all.

    Example:
        >>> select_latents(chosen=np.array([5, 1, 0, 2]), rejected=np.array([1, 4, 0, 2]), pairs=5, k=1)
        Selection(latents=array([0, 1]), separations=array([ 0.8, -0.6]))
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


@dataclass(frozen=True)
class FiringCounts:
    """Number of responses on which each latent fires, counted in each fold.

    Attributes:
        chosen: (folds, d_sae) number of chosen responses on which each latent fires.
        rejected: (folds, d_sae) number of rejected responses on which each latent fires.
        pairs: (folds,) number of pairs.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, texts: RepresentedTexts, pairs: PairIndices, fold_of: np.ndarray) -> FiringCounts:
        """Count the responses on which each latent fires, in one pass over the texts.

        Args:
            texts: T represented texts.
            pairs: N pairs of these texts.
            fold_of: (N,) number of each pair's fold.
        """
        sizes = np.bincount(fold_of)
        sides = [side[fold_of == fold] for side in (pairs.chosen, pairs.rejected) for fold in range(len(sizes))]
        counts = texts.count_firing(sides)
        return cls(counts[: len(sizes)], counts[len(sizes) :], sizes)

    def leave_out(self, latents: Sequence[int]) -> FiringCounts:
        """Count as if some latents never fired, so that none of them is selected.

        Raises:
            SparseRMError: The SAE has no such latent.
        """
        d_sae = self.chosen.shape[1]
        if latents and max(latents) >= d_sae:
            raise SparseRMError(
                f"Latent {max(latents)} cannot be left out, as the SAE has {d_sae}: see exclude_latents."
            )
        keeps = ~np.isin(np.arange(d_sae), latents)
        return FiringCounts(self.chosen * keeps, self.rejected * keeps, self.pairs)

    def select(self, k: int, without: int | None = None) -> Selection:
        """Select K latents on each side by all pairs, or by the pairs outside one fold; see `select_latents`."""
        folds = [fold for fold in range(len(self.pairs)) if fold != without]
        chosen, rejected = self.chosen[folds].sum(0), self.rejected[folds].sum(0)
        return select_latents(chosen, rejected, int(self.pairs[folds].sum()), k)

    def stabilities(self, k: int) -> list[float | None]:
        """Leave out each fold in turn, select again, and count how often each latent is selected for the same side.

        Returns:
            For each selected latent, the share of folds without which it is selected again. All values are None if the
            pairs outside some fold cannot select latents: all pairs have the same prompt, or too few latents fire.
        """
        selected = self.select(k)
        wanted = list(zip(selected.latents.tolist(), selected.sides, strict=True))
        try:
            again = [self.select(k, fold) for fold in range(len(self.pairs))]
        except SparseRMError:
            return [None for _ in wanted]
        found = [set(zip(fold.latents.tolist(), fold.sides, strict=True)) for fold in again]
        return [round(sum(latent in fold for fold in found) / len(found), 6) for latent in wanted]


def fewest_latents(accuracies: Mapping[int, float], pairs: int) -> int:
    """Choose the smallest K whose cross-validated accuracy is within one standard error of the best, and at least 8.

    This is the one-standard-error rule (Breiman et al., 1984, Classification and Regression Trees), with the standard
    error of the best accuracy over the pairs. With fewer than 8 latents on each side, fewer of an explanation's claims
    hold (`benchmarks/claims.py`).

    Args:
        accuracies: Cross-validated accuracy by K.
        pairs: Number of pairs that each accuracy was measured on.

    Example:
        >>> fewest_latents({8: 0.60, 16: 0.79, 32: 0.78, 64: 0.80}, pairs=1000)
        16
    """
    least = min(LEAST_K, max(accuracies))  # a small SAE may have too few latents for LEAST_K
    tried = {k: accuracy for k, accuracy in accuracies.items() if k >= least}
    best = max(tried.values())
    error = (best * (1 - best) / pairs) ** 0.5
    return min(k for k, accuracy in tried.items() if accuracy >= best - error)
