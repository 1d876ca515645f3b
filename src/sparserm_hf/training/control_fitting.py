"""Fit the controls: the same kind of head on simpler features, which the reward model should beat."""

from __future__ import annotations

import numpy as np

from ..evaluation import Control, RowName
from .config import RewardHeadConfig
from .directions import make_directions, random_directions
from .objective import FittedHead
from .represented_texts import PairIndices, RepresentedTexts
from .steps import FittedRewardHead, fit_head


def fit_controls(
    fitted: FittedRewardHead,
    texts: RepresentedTexts,
    lengths: np.ndarray,
    pairs: PairIndices,
    config: RewardHeadConfig,
) -> list[Control]:
    """Fit the controls of a reward model.

    Random directions are made orthonormal if the reward model's directions are. If the rewards must not follow styles,
    the same holds for every control except length, and the reward model without that constraint is one more control.

    Args:
        fitted: The head of the reward model, with its latents and features.
        texts: T represented texts.
        lengths: (T,) number of tokens of each text.
        pairs: Preference pairs of these texts.
        config: Settings of the reward model.
    """
    selected, projection = fitted.selected, fitted.projection
    drawn = random_directions(texts.decoder.shape[1], len(selected.latents), config.seed)
    random = make_directions(drawn, config.directions, texts.average).rows
    dense = fit_head(texts.vectors.astype(np.float64), pairs, config)
    encoded = fit_head(
        texts.activations_of(selected.latents),
        pairs,
        config,
        lambda fold: texts.activations_of(selected.latents_without(fold)),
    )
    controls = [
        Control(RowName.DENSE, dense.layers, "representation"),
        _on_directions(RowName.RANDOM, fit_head(texts.project(random), pairs, config), random),
        Control(RowName.ACTIVATIONS, encoded.layers, "activations"),
    ]
    free = pairs.without_styles()
    if pairs.styles is not None:
        head = fit_head(projection.features, free, config, projection.features_without)
        controls.append(_on_directions(RowName.UNDEBIASED, head, projection.directions.rows))
    length = fit_head(lengths[:, None].astype(np.float64), free, config)
    return [*controls, Control(RowName.LENGTH, length.layers, "length")]


def _on_directions(name: str, head: FittedHead, directions: np.ndarray) -> Control:
    """Turn a head on projections into a head on representations, so that (K, d_model) directions need not be kept."""
    (weight, bias), *rest = head.layers
    return Control(name, ((weight @ directions, bias), *rest), "representation")
