"""Texts as vectors, and preference pairs as positions of texts: the data that a reward head is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from ..conversations import TokenizedPreferences
from ..evaluation import mean_activations
from ..representations import Representations
from ..runtime import SparseRMError
from .objective import Objective, PairFeatures

BLOCK = 65_536  # texts that are projected at once


@dataclass(frozen=True)
class RepresentedTexts:
    """T texts as vectors of the residual stream, with the SAE's activations on them and its decoder.

    Attributes:
        vectors: (T, d_model) one vector for each text, pooled over its tokens.
        activations: (T, d_sae) SAE activations of each text, pooled over its tokens: an array, a sparse matrix, or
            cached `Representations`. A latent fires on a text if its activation there is above zero.
        decoder: (d_sae, d_model) decoder direction of each latent.

    Raises:
        SparseRMError: The shapes do not fit together.

    Example:
        >>> texts = RepresentedTexts(vectors=np.ones((3, 4)), activations=np.eye(3, 5), decoder=np.ones((5, 4)))
        >>> texts.average
        array([1., 1., 1., 1.])
    """

    vectors: np.ndarray
    activations: np.ndarray | sparse.csr_matrix | Representations
    decoder: np.ndarray

    def __post_init__(self) -> None:
        if isinstance(self.activations, Representations):
            return
        vectors, activations, decoder = self.vectors.shape, self.activations.shape, self.decoder.shape
        fits = len(vectors) == len(decoder) == 2 and decoder[1] == vectors[1]
        if not fits or activations != (vectors[0], decoder[0]):
            raise SparseRMError(
                f"The vectors have the shape {vectors}, the activations {activations} and the decoder {decoder}, but "
                "they must be (T, d_model), (T, d_sae) and (d_sae, d_model)."
            )

    @classmethod
    def of(cls, cached: Representations, decoder: np.ndarray) -> RepresentedTexts:
        """Load the vectors of cached representations, in float32; the activations stay on disk."""
        return cls(cached.read(lambda shard: shard.mean), cached, decoder)

    @cached_property
    def average(self) -> np.ndarray:
        """(d_model,) average vector of all texts, in float64."""
        return self.vectors.mean(0, dtype=np.float64)

    def project(self, directions: np.ndarray) -> np.ndarray:
        """Project all texts on (K, d_model) directions: (T, K), in float64."""
        # In blocks, as a million texts in float64 are gigabytes.
        blocks = np.array_split(self.vectors, 1 + len(self.vectors) // BLOCK)
        return np.concatenate([block.astype(np.float64) @ directions.T for block in blocks])

    def count_firing(self, sides: Sequence[np.ndarray]) -> np.ndarray:
        """Count the texts on which each latent fires, in each of several lists of positions: (lists, d_sae)."""
        if isinstance(self.activations, Representations):
            return np.stack(self.activations.count_firing(*sides))
        fires = self.activations > 0
        return np.stack([np.asarray(fires[side].sum(0)).ravel().astype(np.int64) for side in sides])

    def activations_of(self, latents: np.ndarray) -> np.ndarray:
        """Take the activations of K latents on all texts: (T, K), in float64."""
        if isinstance(self.activations, Representations):
            return mean_activations(self.activations, latents)
        return sparse.csr_matrix(self.activations[:, latents]).toarray().astype(np.float64)


@dataclass(frozen=True)
class PairIndices:
    """N preference pairs, as positions of their texts.

    Attributes:
        chosen: (N,) position of each pair's chosen text.
        rejected: (N,) position of each pair's rejected text.
        groups: (N,) number of each pair's prompt. Pairs with the same prompt are held out together.
        margins: (N,) margin of each pair, in units of reward, or one number for all; see `Objective`.
        styles: (N, styles) difference of each style, chosen minus rejected. Reward differences must not be correlated
            with any of them. None permits every correlation.

    Raises:
        SparseRMError: There are fewer than two pairs, or the lengths differ.

    Example:
        >>> pairs = PairIndices(chosen=np.array([0, 2]), rejected=np.array([1, 3]), groups=np.array([0, 1]))
        >>> pairs.features(np.array([[10.0], [11], [12], [13]])).rejected
        array([[11.],
               [13.]])
    """

    chosen: np.ndarray
    rejected: np.ndarray
    groups: np.ndarray
    margins: np.ndarray | float = 0.0
    styles: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_enough(len(self))
        lengths = [len(x) for x in (self.chosen, self.rejected, self.groups, self.objective_margins)]
        if self.styles is not None:
            lengths.append(len(self.styles))
        if len(set(lengths)) > 1:
            raise SparseRMError(
                f"Chosen, rejected, groups, margins and styles have different lengths, {lengths}: give each one entry "
                "for every pair."
            )

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def of(cls, pairs: TokenizedPreferences, styles: np.ndarray | None = None) -> PairIndices:
        """Take positions, groups and margins from tokenized pairs."""
        chosen, rejected, groups = (np.array(column) for column in (pairs.chosen, pairs.rejected, pairs.groups))
        return cls(chosen, rejected, groups, np.array(pairs.margins), styles)

    @property
    def objective_margins(self) -> np.ndarray:
        """(N,) margin of each pair."""
        return np.full(len(self), self.margins) if np.ndim(self.margins) == 0 else np.asarray(self.margins)

    def features(self, of_texts: np.ndarray) -> PairFeatures:
        """Take the features of the pairs from the (T, F) features of all texts."""
        return PairFeatures(of_texts[self.chosen], of_texts[self.rejected])

    def objective(self, loss: str, gamma: float) -> Objective:
        """Make the objective of a fit to these pairs."""
        return Objective(loss, gamma, self.objective_margins, self.styles)

    def rows(self, index: np.ndarray) -> PairIndices:
        """Take the pairs at some positions."""
        styles = None if self.styles is None else self.styles[index]
        margins = self.objective_margins[index]
        return PairIndices(self.chosen[index], self.rejected[index], self.groups[index], margins, styles)

    def without_styles(self) -> PairIndices:
        """Permit correlation with every style."""
        return replace(self, styles=None)


def check_enough(pairs: int) -> None:
    """Raise a `SparseRMError` if there are fewer than two pairs."""
    if pairs < 2:
        raise SparseRMError(f"There are {pairs} usable pairs, but at least 2 are needed: give more pairs.")
