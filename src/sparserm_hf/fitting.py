"""From represented preference pairs to fitted heads, whatever they read: selection stays inside each fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .conversations.pairs import TokenizedPreferences
from .errors import SparseRMError
from .features import read_features
from .head import FOLDS, FittedHead, Objective, PairFeatures, fit_linear_head, fit_mlp_head, group_folds
from .selection import Selection, select_latents
from .shards import Representations
from .training_config import SparseRMTrainingConfig


class HeadFitter:
    """Selects latents and fits heads on training pairs.

    Args:
        args: The settings.
        pairs: N preference pairs.
        texts: Representations of their texts.
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
        self._selections: dict[bytes, Selection] = {}

    def select(self, train: np.ndarray | None = None) -> Selection:
        """Select latents by some of the training pairs, named by their numbers; by default by all."""
        train = np.arange(len(self.pairs)) if train is None else train
        if (key := train.tobytes()) not in self._selections:  # each fold asks again for each method
            sides = (np.array(side)[train] for side in (self.pairs.chosen, self.pairs.rejected))
            chosen, rejected = self.texts.count_firing(*sides)
            self._selections[key] = select_latents(chosen, rejected, len(train), self.args.k)
        return self._selections[key]

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

    def read(self, latents: np.ndarray) -> np.ndarray:
        """(T, F) features of all training texts, of the given latents."""
        return read_features(self.texts, self.decoder[latents], latents, self.args.readings)

    def read_selected(self, train: np.ndarray) -> np.ndarray:
        """(T, F) features of all training texts, of the latents that some of the pairs select."""
        return self.read(self.select(train).latents)

    def fit(self, read: Callable[[np.ndarray], np.ndarray], debias: bool = True) -> FittedHead:
        """Fit a head to the training pairs.

        Args:
            read: From the numbers of the pairs that may be looked at to (T, F) features of all training texts.
            debias: Whether its rewards must not follow the styles.
        """
        args, pairs = self.args, self.pairs
        chosen, rejected, groups = np.array(pairs.chosen), np.array(pairs.rejected), np.array(pairs.groups)
        objective = self.objective if debias else replace(self.objective, styles=None)

        def features_for(train: np.ndarray) -> PairFeatures:
            features = read(train)
            return PairFeatures(features[chosen], features[rejected])

        if args.head_type == "linear":
            return fit_linear_head(features_for, objective, groups, args.seed)
        return fit_mlp_head(features_for(np.arange(len(pairs))), objective, groups, args.seed, args.head_hidden_size)
