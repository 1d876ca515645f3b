"""The inputs and the result of fitting a reward head: features of pairs, objective, fitted head.

`linear_head.py` and `mlp_head.py` fit the two kinds of head. `modeling/head_sparserm.py` is the head in a reward
model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import orth

from ..evaluation import Layers, apply_layers
from ..runtime import SparseRMError

LOSSES = ("margin", "bradley_terry", "bce")


@dataclass(frozen=True)
class PairFeatures:
    """Features of N preference pairs.

    Attributes:
        chosen: (N, F) features of the chosen responses.
        rejected: (N, F) features of the rejected responses.
    """

    chosen: np.ndarray
    rejected: np.ndarray

    def rows(self, index: np.ndarray) -> PairFeatures:
        """Take the pairs at some positions."""
        return PairFeatures(self.chosen[index], self.rejected[index])


@dataclass(frozen=True)
class Objective:
    """The loss that a head minimises on N pairs, and the styles that its rewards must not follow.

    Attributes:
        loss: With d the reward difference and m the pair's margin: `margin` is max(0, gamma + m - d),
            `bradley_terry` is -log sigmoid(d - m), and `bce` is the cross-entropy of classifying single responses as
            chosen or rejected.
        gamma: Reward difference that the loss `margin` demands of every pair.
        margins: (N,) margin of each pair on top of gamma, in units of reward.
        styles: (N, styles) difference of each style, chosen minus rejected. Reward differences must not be correlated
            with any of them. None permits every correlation.

    Raises:
        SparseRMError: A margin is -gamma or less.
    """

    loss: str
    gamma: float
    margins: np.ndarray
    styles: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.loss == "margin" and self.gamma + self.margins.min() <= 0:
            raise SparseRMError(
                f"A pair has the margin {self.margins.min()} and gamma is {self.gamma}, so that any reward difference "
                "would do: margins must be above -gamma."
            )

    def rows(self, index: np.ndarray) -> Objective:
        """Take the pairs at some positions."""
        styles = None if self.styles is None else self.styles[index]
        return replace(self, margins=self.margins[index], styles=styles)


@dataclass(frozen=True)
class FittedHead:
    """A fitted head on raw, unstandardised features: one affine layer, or two with a ReLU between them.

    Attributes:
        layers: (weight, bias) of each layer; the last layer has one output.
        l2: L2 penalty of a linear head; None for an MLP, and for a head that was trained with an adapter.
        validation_accuracy: Accuracy on the held-out pairs by which the penalty (linear head), the number of epochs
            (MLP) or the weights (adapter) were chosen; None without held-out pairs.
        held_out_margins: Reward differences of the held-out pairs, by heads that were not fitted to these pairs; None
            without held-out pairs, and with an adapter.
    """

    layers: Layers
    l2: float | None
    validation_accuracy: float | None
    held_out_margins: np.ndarray | None = None

    def rewards(self, features: np.ndarray) -> np.ndarray:
        """Compute the (N,) rewards of (N, F) features."""
        return apply_layers(self.layers, features)


def standardization(features: PairFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and the standard deviation of each feature over all responses, (F,) each.

    A constant feature gets an infinite deviation, so that its weight becomes zero without a division by zero.
    """
    both = np.concatenate([features.chosen, features.rejected])
    deviation = both.std(0)
    return both.mean(0), np.where(deviation > 1e-8, deviation, np.inf)


def style_basis(differences: np.ndarray, styles: np.ndarray | None) -> np.ndarray:
    """Find the directions of feature space along which reward differences are correlated with styles.

    A weight w gives reward differences D w. With D and S centred over the pairs, their covariance with the styles S is
    w (D' S), which is zero for each w orthogonal to the columns of D' S. Centring allows that chosen responses have
    more of a style on average. It demands only that the size of the reward difference does not depend on the style
    (the criterion of separation: Hardt et al., 2016, arXiv 1610.02413).

    Args:
        differences: (N, F) features, chosen minus rejected.
        styles: (N, styles) difference of each style, chosen minus rejected.

    Returns:
        (F, n) orthonormal columns, with n at most the number of styles.
    """
    if styles is None:
        return np.zeros((differences.shape[1], 0))
    centred = styles - styles.mean(0)
    deviation = centred.std(0)
    return orth((differences - differences.mean(0)).T @ (centred / np.where(deviation > 0, deviation, 1.0)))


def without_basis(x: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Remove the parts of vectors (..., F) along orthonormal columns (F, n)."""
    return x - (x @ basis) @ basis.T if basis.shape[1] else x
