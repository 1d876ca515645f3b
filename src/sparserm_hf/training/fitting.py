"""From represented preference pairs to fitted heads, whatever they read: selection stays inside each fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from ..conversations import TokenizedPreferences
from ..representations import Representations
from ..runtime import SparseRMError
from .config import SparseRMTrainingConfig
from .directions import Directions, make_directions
from .head import FOLDS, FittedHead, Objective, PairFeatures, fit_linear_head, group_folds
from .mlp_head import fit_mlp_head
from .selection import K_CANDIDATES, Selection, fewest_latents, select_latents

BLOCK = 65_536  # texts that are projected at once


def check_k(args: SparseRMTrainingConfig, d_sae: int, d_model: int) -> None:
    """Raise a `SparseRMError` where the settings ask for more latents or directions than there are."""
    if not isinstance(args.k, int):
        return
    if 2 * args.k > d_sae:
        raise SparseRMError(f"K = {args.k} asks for {2 * args.k} latents, but the SAE has {d_sae}.")
    if args.directions == "orthogonal" and 2 * args.k >= d_model:  # they are orthogonal to the average token too
        raise SparseRMError(
            f"K = {args.k} asks for {2 * args.k} orthogonal directions, but the base model has {d_model} dimensions: "
            f"choose K up to {(d_model - 1) // 2}, or --directions raw."
        )


class HeadFitter:
    """Selects latents and fits heads on training pairs.

    Args:
        args: The settings.
        pairs: N preference pairs.
        texts: Representations of their T texts.
        decoder: (d_sae, d_model) decoder directions of all latents.
        styles: (N, styles) differences of style, chosen minus rejected, that rewards must not follow; None where they
            may.
    """

    def __init__(
        self,
        args: SparseRMTrainingConfig,
        pairs: TokenizedPreferences,
        texts: Representations,
        decoder: np.ndarray,
        styles: np.ndarray | None = None,
    ):
        self.args, self.pairs, self.texts, self.decoder = args, pairs, texts, decoder
        self.objective = Objective(args.loss, args.gamma, np.array(pairs.margins), styles)
        self._counts: dict[bytes, list[np.ndarray]] = {}

    @cached_property
    def mean(self) -> np.ndarray:
        """(T, d_model) average token of each training text, in float32: with a million pairs it is gigabytes."""
        return self.texts.read(lambda shard: shard.mean)

    @cached_property
    def average(self) -> np.ndarray:
        """(d_model,) average token of all training texts."""
        return self.mean.mean(0, dtype=np.float64)

    def project(self, directions: np.ndarray) -> np.ndarray:
        """(T, K) projections of the training texts on (K, d_model) directions, in float64."""
        blocks = np.array_split(self.mean, 1 + len(self.mean) // BLOCK)
        return np.concatenate([block.astype(np.float64) @ directions.T for block in blocks])

    @property
    def k(self) -> int:
        """Latents on either side: as many as the settings say, or as few as the pairs ask for."""
        return self.args.k if isinstance(self.args.k, int) else fewest_latents(self.k_accuracies, len(self.pairs))

    @cached_property
    def k_accuracies(self) -> dict[int, float]:
        """Cross-validated accuracy of a linear head by the number of latents on either side.

        Raises:
            SparseRMError: Too few latents fire on the pairs.
        """
        if isinstance(self.args.k, int):
            return {}
        accuracies: dict[int, float] = {}
        for k in K_CANDIDATES:
            if k > 1 and self.args.directions == "orthogonal" and 2 * k >= self.decoder.shape[1]:
                break
            try:
                head = self.fit(partial(self.read_selected, k=k), head_type="linear")
            except SparseRMError:
                if not accuracies:
                    raise
                break
            accuracies[k] = head.validation_accuracy if head.validation_accuracy is not None else 0.5
        return accuracies

    def select(self, train: np.ndarray | None = None, k: int | None = None) -> Selection:
        """Select latents by some of the training pairs, named by their numbers; by default by all, and `self.k`."""
        train = np.arange(len(self.pairs)) if train is None else train
        if (key := train.tobytes()) not in self._counts:  # each fold asks again for each method
            sides = (np.array(side)[train] for side in (self.pairs.chosen, self.pairs.rejected))
            self._counts[key] = self.texts.count_firing(*sides)
        chosen, rejected = self._counts[key]
        return select_latents(chosen, rejected, len(train), self.k if k is None else k)

    def stability(self) -> list[float | None]:
        """For each latent selected by all pairs, the share of the folds that select it for the same side.

        Each fold selects by the pairs of the other folds, as in cross-validation; None where a fold cannot select.
        """
        selected, fold_of = self.select(), group_folds(np.array(self.pairs.groups), FOLDS, self.args.seed)
        wanted = list(zip(selected.latents.tolist(), selected.sides, strict=True))
        try:
            again = [self.select(np.flatnonzero(fold_of != fold)) for fold in np.unique(fold_of)]
        except SparseRMError:  # all pairs share a prompt, or too few latents fire without those of a fold
            return [None for _ in wanted]
        found = [set(zip(fold.latents.tolist(), fold.sides, strict=True)) for fold in again]
        return [round(sum(latent in fold for fold in found) / len(found), 6) for latent in wanted]

    def directions(self, selection: Selection) -> Directions:
        """The directions that the features of selected latents are projections on."""
        return self.make_directions(self.decoder[selection.latents])

    def make_directions(self, given: np.ndarray) -> Directions:
        """Make directions of the kind that the settings ask for; see `make_directions`."""
        return make_directions(given, self.args.directions, self.average)

    def read_selected(self, train: np.ndarray, k: int | None = None) -> np.ndarray:
        """(T, 2K) features of all training texts, of the latents that some of the pairs select."""
        return self.project(self.directions(self.select(train, k)).rows)

    def fit(
        self, read: Callable[[np.ndarray], np.ndarray], debias: bool = True, head_type: str | None = None
    ) -> FittedHead:
        """Fit a head to the training pairs.

        Args:
            read: From the numbers of the pairs that may be looked at to (T, F) features of all training texts.
            debias: Whether its rewards must not follow the styles.
            head_type: `linear` or `mlp`; by default as the settings say.
        """
        args, pairs = self.args, self.pairs
        chosen, rejected, groups = np.array(pairs.chosen), np.array(pairs.rejected), np.array(pairs.groups)
        objective = self.objective if debias else replace(self.objective, styles=None)

        def features_for(train: np.ndarray) -> PairFeatures:
            features = read(train)
            return PairFeatures(features[chosen], features[rejected])

        if (head_type or args.head_type) == "linear":
            return fit_linear_head(features_for, objective, groups, args.seed)
        return fit_mlp_head(features_for(np.arange(len(pairs))), objective, groups, args.seed, args.head_hidden_size)
