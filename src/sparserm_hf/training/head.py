"""The reward head: fitted to preference pairs, regularised by cross-validation inside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import orth
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.svm import LinearSVC

from ..evaluation import Layers, apply_layers, pair_accuracy
from ..runtime import SparseRMError

FOLDS = 5
LOSSES = ("margin", "bradley_terry", "bce")
# From strong to weak. The features are standardised and the loss is a mean over pairs, so that the same values fit
# any number of pairs.
L2_PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
# Violation of the optimality conditions at the end of a fit, and of one that only ranks the penalties. liblinear
# counts it in units of a pair's own loss, hence the larger value for the margin loss.
FIT_TOLERANCE = {"margin": 1e-6, "bradley_terry": 1e-7, "bce": 1e-7}
CROSS_VALIDATION_TOLERANCE = {"margin": 1e-2, "bradley_terry": 1e-4, "bce": 1e-4}


@dataclass(frozen=True)
class PairFeatures:
    """Features of N preference pairs: both (N, F)."""

    chosen: np.ndarray
    rejected: np.ndarray

    def rows(self, index: np.ndarray) -> PairFeatures:
        """Some of the pairs."""
        return PairFeatures(self.chosen[index], self.rejected[index])


@dataclass(frozen=True)
class Objective:
    """What a head is fitted to.

    Attributes:
        loss: With d the reward difference and m the pair's margin: `margin` is max(0, gamma + m - d),
            `bradley_terry` is -log sigmoid(d - m), `bce` the cross-entropy of telling chosen from rejected
            responses one by one.
        gamma: The margin that every pair must keep, for `margin`.
        margins: (N,) margin of each pair on top of it, in units of reward.
        styles: (N, styles) by how much the chosen response has more of each style than the rejected one; reward
            differences must not be correlated with it. None where they may be.
    """

    loss: str
    gamma: float
    margins: np.ndarray
    styles: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.loss == "margin" and self.gamma + self.margins.min() <= 0:
            raise SparseRMError(
                f"A pair has the margin {self.margins.min()}, which with gamma = {self.gamma} asks for no difference "
                "at all: margins must be above -gamma."
            )

    def rows(self, index: np.ndarray) -> Objective:
        """The objective for some of the pairs."""
        styles = None if self.styles is None else self.styles[index]
        return replace(self, margins=self.margins[index], styles=styles)


@dataclass(frozen=True)
class FittedHead:
    """A head on raw, unstandardised features: one affine layer, or two with a ReLU between them.

    Attributes:
        layers: (weight, bias) of each layer; the last has one output.
        l2: Chosen L2 penalty of a linear head.
        validation_accuracy: Accuracy on the pairs held out while the penalty (linear) or the number of epochs (MLP)
            was chosen.
        held_out_margins: Reward differences of those pairs, by heads that were not fitted to them.
    """

    layers: Layers
    l2: float | None
    validation_accuracy: float | None
    held_out_margins: np.ndarray | None = None

    def rewards(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features to (N,) rewards."""
        return apply_layers(self.layers, features)


def _standardization(features: PairFeatures) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([features.chosen, features.rejected])
    deviation = both.std(0)
    # A feature that never changes carries nothing; its weight becomes zero, not a division by zero.
    return both.mean(0), np.where(deviation > 1e-8, deviation, np.inf)


def _style_basis(differences: np.ndarray, styles: np.ndarray | None) -> np.ndarray:
    """Orthonormal directions (F, at most styles) of the features without which no head's rewards follow the styles.

    A weight w gives reward differences D w, whose covariance with the styles S over the pairs is w (D' S): zero where
    w is orthogonal to the columns of D' S, with D and S centred. Centred, so that what tells chosen from rejected is
    not taken for a style that chosen responses happen to have more of: among pairs whose chosen response is better,
    how much better it is must not depend on the style (the criterion of separation: Hardt et al., 2016, arXiv
    1610.02413).
    """
    if styles is None:
        return np.zeros((differences.shape[1], 0))
    centred = styles - styles.mean(0)
    deviation = centred.std(0)
    return orth((differences - differences.mean(0)).T @ (centred / np.where(deviation > 0, deviation, 1.0)))


def _without(x: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Vectors (..., F) without their parts along orthonormal directions (F, n)."""
    return x - (x @ basis) @ basis.T if basis.shape[1] else x


def _fit_margin(differences: np.ndarray, thresholds: np.ndarray, l2: float, tolerance: float) -> np.ndarray:
    """Minimise mean(max(0, thresholds - D w)) + l2/2 |w|^2.

    That is a support vector machine without intercept on the differences over their thresholds, each weighted by its
    threshold. It wants two classes, so every other difference is turned round.
    """
    sign = np.where(np.arange(len(differences)) % 2, -1.0, 1.0)
    machine = LinearSVC(
        loss="hinge",
        fit_intercept=False,
        C=1.0 / (len(differences) * l2),
        tol=tolerance,
        max_iter=1_000_000,
        random_state=0,
    )
    machine.fit(differences * (sign / thresholds)[:, None], sign, sample_weight=thresholds)
    return machine.coef_[0]


def _fit_logistic(
    signed: np.ndarray,
    offsets: np.ndarray,
    l2: float,
    penalised: np.ndarray,
    start: np.ndarray | None,
    tolerance: float,
) -> np.ndarray:
    """Minimise mean(log(1 + exp(offsets - X w))) + l2/2 |w|^2 over the penalised entries of w."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = signed @ w - offsets
        shrunk = l2 * penalised * w
        return np.logaddexp(0.0, -z).mean() + 0.5 * w @ shrunk, shrunk - expit(-z) @ signed / len(z)

    start = np.zeros(signed.shape[1]) if start is None else start
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-14, "gtol": tolerance, "maxcor": 20}
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x


def fit_linear_path(
    features: PairFeatures,
    objective: Objective,
    penalties: tuple[float, ...],
    tolerances: dict[str, float] = FIT_TOLERANCE,
) -> list[FittedHead]:
    """Fit a linear head to convergence for each L2 penalty.

    The bias makes the mean reward of the training responses zero, but for `bce`, which has a bias of its own.

    Args:
        features: (N, F) raw features of the pairs.
        objective: Loss and margins.
        penalties: From strong to weak.
        tolerances: For each loss, the violation of the optimality conditions at which a fit counts as converged.
    """
    mean, deviation = _standardization(features)
    chosen, rejected = (features.chosen - mean) / deviation, (features.rejected - mean) / deviation
    basis = _style_basis(chosen - rejected, objective.styles)
    chosen, rejected = _without(chosen, basis), _without(rejected, basis)
    differences = chosen - rejected
    signed, penalised = differences, np.ones(chosen.shape[1])
    offsets = objective.margins
    if objective.loss == "bce":
        ones = np.ones((len(chosen), 1))
        signed, penalised = np.block([[chosen, ones], [-rejected, -ones]]), np.append(penalised, 0.0)
        offsets = np.zeros(len(signed))
    tolerance = tolerances[objective.loss]
    heads, start = [], None
    for l2 in penalties:
        if objective.loss == "margin":
            w, bias = _fit_margin(differences, objective.gamma + objective.margins, l2, tolerance), 0.0
        else:
            start = _fit_logistic(signed, offsets, l2, penalised, start, tolerance)
            w, bias = start[: chosen.shape[1]], float(start[-1]) if objective.loss == "bce" else 0.0
        weight = _without(w, basis) / deviation
        heads.append(FittedHead(((weight[None, :], np.array([bias - weight @ mean])),), l2, None))
    return heads


def group_folds(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold number for each pair; the pairs of one prompt share it: none is judged on a prompt it was fitted to."""
    names, prompt = np.unique(groups, return_inverse=True)
    return np.random.default_rng(seed).permutation(len(names))[prompt] % folds


def fit_linear_head(
    features_for: Callable[[np.ndarray], PairFeatures],
    objective: Objective,
    groups: np.ndarray,
    seed: int,
    folds: int = FOLDS,
) -> FittedHead:
    """Fit a linear head whose L2 penalty is chosen by cross-validation inside the training pairs.

    The penalty with the best accuracy over all held-out pairs wins; ties go to the stronger one.

    Args:
        features_for: From the numbers of the pairs that may be looked at to the features of all N pairs. Called once
            a fold and once for all, so that whatever it selects is selected inside each fold.
        objective: Loss and margins of all N pairs.
        groups: (N,) number of each pair's prompt.
        seed: For the folds.
        folds: Number of folds; fewer where there are fewer prompts.
    """
    everything = np.arange(len(groups))
    fold_of = group_folds(groups, min(folds, len(np.unique(groups))), seed)
    sizes = np.bincount(fold_of)
    penalty, accuracy, held_out_margins = 1.0, None, None
    if len(groups) - sizes.max() >= 2:  # else there is too little to fit to while something is held out
        margins = np.zeros((len(L2_PENALTIES), len(groups)))
        for fold in range(len(sizes)):
            train, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            features = features_for(train)
            test = features.rows(held_out)
            heads = fit_linear_path(
                features.rows(train), objective.rows(train), L2_PENALTIES, CROSS_VALIDATION_TOLERANCE
            )
            for i, head in enumerate(heads):
                margins[i, held_out] = head.rewards(test.chosen) - head.rewards(test.rejected)
        accuracies = [pair_accuracy(of_penalty) for of_penalty in margins]
        best = int(np.argmax(accuracies))
        penalty, accuracy, held_out_margins = L2_PENALTIES[best], accuracies[best], margins[best]
    (head,) = fit_linear_path(features_for(everything), objective, (penalty,))
    return replace(head, validation_accuracy=accuracy, held_out_margins=held_out_margins)
