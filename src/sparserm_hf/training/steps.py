"""The method on vectors: select latents, project on their directions, fit the reward head.

`fit_reward_head` runs these steps on vectors of your own; `trainer.py` runs them on the representations of texts. The
mathematics of each step is in `selection.py`, `directions.py`, `linear_head.py` and `mlp_head.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from ..evaluation import Layers, apply_layers, pair_accuracy
from ..runtime import SparseRMError, process_state
from .config import RewardHeadConfig
from .directions import Directions, make_directions
from .ensemble import Ensemble, fit_ensemble
from .folds import FOLDS, group_folds
from .linear_head import cross_validate, fit_linear_head
from .mlp_head import fit_mlp_head
from .objective import FittedHead, PairFeatures
from .represented_texts import PairIndices, RepresentedTexts
from .selection import K_CANDIDATES, FiringCounts, Selection, fewest_latents


@dataclass(frozen=True)
class SelectedLatents:
    """The selected latents, and the counts and accuracies by which they were chosen.

    Attributes:
        selection: The latents that all pairs select.
        firing: Firing counts in each fold, by which the pairs outside a fold select their own latents.
        k: Number of latents on each side.
        k_accuracies: Cross-validated accuracy of a linear head for each K that was tried; empty if K was given.
    """

    selection: Selection
    firing: FiringCounts
    k: int
    k_accuracies: dict[int, float]

    @property
    def latents(self) -> np.ndarray:
        """(2K,) ids of the latents."""
        return self.selection.latents

    def latents_without(self, fold: int) -> np.ndarray:
        """(2K,) ids of the latents that the pairs outside a fold select."""
        return self.firing.select(self.k, fold).latents


@dataclass(frozen=True)
class Projection:
    """Projections of T texts on the directions of the selected latents.

    Attributes:
        directions: The directions of the latents that all pairs select.
        features: (T, 2K) projections of all texts on these directions.
        features_without: Takes a fold and computes (T, 2K) projections on the directions of the latents that the
            pairs outside that fold select.
    """

    directions: Directions
    features: np.ndarray
    features_without: Callable[[int], np.ndarray]


@dataclass(frozen=True)
class FittedRewardHead:
    """A reward head with the latents and directions that it was fitted on.

    Attributes:
        selected: The selected latents.
        projection: The directions, and the features of the training texts.
        head: The head on these features.
        ensemble: Further heads on these features; None without an ensemble.
    """

    selected: SelectedLatents
    projection: Projection
    head: FittedHead
    ensemble: Ensemble | None = None

    def rewards(self, vectors: np.ndarray) -> np.ndarray:
        """Compute the (T,) rewards of (T, d_model) vectors of the residual stream."""
        return self.head.rewards(vectors @ self.projection.directions.rows.T)


def fit_reward_head(
    representations: RepresentedTexts, pairs: PairIndices, config: RewardHeadConfig | None = None
) -> FittedRewardHead:
    """Fit a reward head to vectors of your own: no base model and no text is needed.

    These are the steps `select`, `project` and `fit` of `SparseRMTrainer.train`, with the same results to the
    bit. The cross-validation selects latents anew in each fold.

    Args:
        representations: Vectors and SAE activations of T texts, and the SAE's decoder.
        pairs: Preference pairs, as positions of texts, with their prompts.
        config: Settings; by default those of `RewardHeadConfig`.

    Returns:
        The selected latents, their directions and the head.

    Raises:
        SparseRMError: Too few latents fire on the pairs, or K is too large for the SAE or for orthogonal directions.

    Example:
        Latent 0 is planted in chosen texts and latent 1 in rejected texts:

        >>> rng = np.random.default_rng(0)
        >>> vectors, decoder = rng.normal(size=(80, 6)), np.eye(6)[:4]
        >>> vectors[:40, 0] += 3
        >>> vectors[40:, 1] += 3
        >>> texts = RepresentedTexts(vectors, np.maximum(vectors @ decoder.T - 1, 0), decoder)
        >>> pairs = PairIndices(chosen=np.arange(40), rejected=np.arange(40, 80), groups=np.arange(40))
        >>> fitted = fit_reward_head(texts, pairs, RewardHeadConfig(k=1))
        >>> fitted.selected.latents.tolist(), fitted.head.validation_accuracy
        ([0, 1], 1.0)
        >>> rewards = fitted.rewards(vectors)
        >>> bool(np.all(rewards[pairs.chosen] > rewards[pairs.rejected]))
        True
    """
    config = config or RewardHeadConfig()
    check_k(config, *representations.decoder.shape)
    selected = select(representations, pairs, config)
    projection = project(representations, selected, config)
    return fit(selected, projection, pairs, config)


def check_k(config: RewardHeadConfig, d_sae: int, d_model: int) -> None:
    """Raise a `SparseRMError` if K latents on each side are more than the SAE or orthogonal directions allow."""
    if not isinstance(config.k, int):
        return
    if 2 * config.k > d_sae:
        raise SparseRMError(
            f"K = {config.k} asks for {2 * config.k} latents, but the SAE has {d_sae}: choose K up to {d_sae // 2}."
        )
    if not _has_room(config, config.k, d_model):
        raise SparseRMError(
            f"K = {config.k} asks for {2 * config.k} orthogonal directions, but the base model has {d_model} "
            f"dimensions: choose K up to {(d_model - 1) // 2}, or --directions raw."
        )


def _has_room(config: RewardHeadConfig, k: int, d_model: int) -> bool:
    return config.directions == "raw" or 2 * k < d_model  # orthogonal ones avoid the average token too


def select(texts: RepresentedTexts, pairs: PairIndices, config: RewardHeadConfig) -> SelectedLatents:
    """Select the latents that tell chosen from rejected responses, and their number if `config.k` is `auto`.

    Raises:
        SparseRMError: Too few latents fire on the pairs.
    """
    fold_of = group_folds(pairs.groups, FOLDS, config.seed)
    firing = FiringCounts.of(texts, pairs, fold_of).leave_out(config.excluded)
    if isinstance(config.k, int):
        return SelectedLatents(firing.select(config.k), firing, config.k, {})
    accuracies = _try_k(texts, pairs, firing, fold_of, config)
    k = fewest_latents(accuracies, len(pairs))
    return SelectedLatents(firing.select(k), firing, k, accuracies)


def _try_k(
    texts: RepresentedTexts, pairs: PairIndices, firing: FiringCounts, fold_of: np.ndarray, config: RewardHeadConfig
) -> dict[int, float]:
    """Cross-validate a linear head for each K; the accuracy is 0.5 if there are too few pairs to hold some out."""
    objective, accuracies = pairs.objective(config.loss, config.gamma), dict[int, float]()
    hidden = not process_state().is_main_process
    for k in tqdm(K_CANDIDATES, "Cross-validation", unit="K", delay=2, leave=False, disable=hidden):
        if k > 1 and not _has_room(config, k, texts.decoder.shape[1]):
            break

        def features_for(fold: int | None, k: int = k) -> PairFeatures:
            directions = _directions_of(texts, firing.select(k, fold).latents, config)
            return pairs.features(texts.project(directions.rows))

        try:
            firing.select(k)
            accuracy = cross_validate(features_for, objective, fold_of).accuracy
        except SparseRMError:  # fewer than 2K latents fire
            if not accuracies:
                raise
            break
        accuracies[k] = 0.5 if accuracy is None else accuracy
    return accuracies


def project(texts: RepresentedTexts, selected: SelectedLatents, config: RewardHeadConfig) -> Projection:
    """Project all texts on the directions of the selected latents."""

    def features_without(fold: int) -> np.ndarray:
        return texts.project(_directions_of(texts, selected.latents_without(fold), config).rows)

    directions = _directions_of(texts, selected.latents, config)
    return Projection(directions, texts.project(directions.rows), features_without)


def _directions_of(texts: RepresentedTexts, latents: np.ndarray, config: RewardHeadConfig) -> Directions:
    return make_directions(texts.decoder[latents], config.directions, texts.average)


def fit(
    selected: SelectedLatents, projection: Projection, pairs: PairIndices, config: RewardHeadConfig
) -> FittedRewardHead:
    """Fit the reward head to the projections; its cross-validation selects latents anew in each fold.

    Raises:
        SparseRMError: There are too few prompts for an ensemble.
    """
    head, ensemble = fit_head(projection.features, pairs, config, projection.features_without), None
    if config.ensemble:
        assert head.l2 is not None  # see RewardHeadConfig
        objective = pairs.objective(config.loss, config.gamma)
        ensemble = fit_ensemble(projection.features, pairs, objective, head.l2, config.ensemble, config.seed)
    return FittedRewardHead(selected, projection, head, ensemble)


def carry_over(
    fitted: FittedRewardHead, layers: Layers, texts: RepresentedTexts, pairs: PairIndices, held_out: np.ndarray
) -> FittedRewardHead:
    """Replace the fitted head by the head that was trained with an adapter; latents and directions stay the same.

    The Bradley-Terry loss treats reward differences as log odds, so their temperature is 1. The held-out pairs are too
    few to fit a better temperature.

    Args:
        fitted: Latents, directions and head for the frozen base model.
        layers: (weight, bias) of each affine layer of the trained head.
        texts: The texts as the adapted base model represents them.
        pairs: Preference pairs of these texts.
        held_out: Indices of the pairs that were held out of the training.
    """
    directions = fitted.projection.directions
    features = texts.project(directions.rows)
    rewards = apply_layers(layers, features)
    margins = (rewards[pairs.chosen] - rewards[pairs.rejected])[held_out]
    *rest, (weight, bias) = layers
    centred = (*rest, (weight, bias - rewards.mean()))  # as in a fitted head, the mean training reward is zero
    head = FittedHead(centred, None, pair_accuracy(margins))
    return FittedRewardHead(fitted.selected, Projection(directions, features, lambda fold: features), head)


def fit_head(
    features: np.ndarray,
    pairs: PairIndices,
    config: RewardHeadConfig,
    features_without: Callable[[int], np.ndarray] | None = None,
) -> FittedHead:
    """Fit a head of the configured type to any features of texts.

    Args:
        features: (T, F) features of all texts.
        pairs: Preference pairs, as positions of texts.
        config: Settings.
        features_without: Takes a fold and computes (T, F) features that were selected by the pairs outside that fold.
            None means that features are the same in every fold.
    """
    objective = pairs.objective(config.loss, config.gamma)
    if config.head_type == "mlp":
        of_pairs = pairs.features(features)
        return fit_mlp_head(of_pairs, objective, pairs.groups, config.seed)

    def features_for(fold: int | None) -> PairFeatures:
        return pairs.features(features if fold is None or features_without is None else features_without(fold))

    return fit_linear_head(features_for, objective, group_folds(pairs.groups, FOLDS, config.seed))
