"""Fit a linear reward head: a convex problem for each L2 penalty, and cross-validation to choose the penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.svm import LinearSVC

from ..evaluation import pair_accuracy
from .config import L2_PENALTIES
from .folds import pairs_outside
from .objective import FittedHead, Objective, PairFeatures, standardization, style_basis, without_basis

# Violation of the optimality conditions at the end of a fit. The cross-validation only ranks the penalties, so its
# fits stop earlier. liblinear counts in units of a single pair's loss, hence the larger values for the margin loss.
FIT_TOLERANCE = {"margin": 1e-6, "bradley_terry": 1e-7, "bce": 1e-7}
CROSS_VALIDATION_TOLERANCE = {"margin": 1e-2, "bradley_terry": 1e-4, "bce": 1e-4}


def _fit_margin(differences: np.ndarray, thresholds: np.ndarray, l2: float, tolerance: float) -> np.ndarray:
    """Minimise mean(max(0, thresholds - D w)) + l2/2 |w|^2 over w; D are the differences.

    That is a support vector machine without intercept on the differences, each divided and weighted by its threshold.
    The machine needs two classes, so every other difference is negated.
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
    """Minimise mean(log(1 + exp(offsets - X w))) + l2/2 |w|^2 over w; |w| counts the penalised entries only."""

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

    The bias makes the mean reward of the training responses zero, except for `bce`, which fits its own bias.

    Args:
        features: (N, F) raw features of the pairs.
        objective: Objective on the N pairs.
        penalties: L2 penalties, from strong to weak.
        tolerances: For each loss, the violation of the optimality conditions at which a fit counts as converged.

    Returns:
        A head for each penalty.
    """
    mean, deviation = standardization(features)
    chosen, rejected = (features.chosen - mean) / deviation, (features.rejected - mean) / deviation
    basis = style_basis(chosen - rejected, objective.styles)
    chosen, rejected = without_basis(chosen, basis), without_basis(rejected, basis)
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
        weight = without_basis(w, basis) / deviation
        heads.append(FittedHead(((weight[None, :], np.array([bias - weight @ mean])),), l2, None))
    return heads


FeaturesFor = Callable[[int | None], PairFeatures]


@dataclass(frozen=True)
class CrossValidation:
    """Outcome of a cross-validation over L2 penalties.

    Attributes:
        l2: The penalty with the best accuracy.
        accuracy: Accuracy with that penalty over all held-out pairs; None if there are too few pairs to hold some out.
        margins: (N,) reward difference of each pair, by the head fitted without its fold; None if `accuracy` is None.
    """

    l2: float
    accuracy: float | None
    margins: np.ndarray | None


def cross_validate(features_for: FeaturesFor, objective: Objective, fold_of: np.ndarray) -> CrossValidation:
    """Choose the L2 penalty of a linear head by its accuracy on held-out pairs; ties go to the stronger penalty.

    Args:
        features_for: Takes a fold and computes the features of all N pairs. If it selects latents, it must select them
            by the pairs outside that fold.
        objective: Objective on all N pairs.
        fold_of: (N,) number of each pair's fold, see `group_folds`.
    """
    sizes = np.bincount(fold_of)
    if len(fold_of) - sizes.max() < 2:  # too few pairs remain outside the largest fold
        return CrossValidation(1.0, None, None)
    margins = np.zeros((len(L2_PENALTIES), len(fold_of)))
    for fold in range(len(sizes)):
        train, held_out = pairs_outside(fold_of, fold), np.flatnonzero(fold_of == fold)
        features = features_for(fold)
        test = features.rows(held_out)
        heads = fit_linear_path(features.rows(train), objective.rows(train), L2_PENALTIES, CROSS_VALIDATION_TOLERANCE)
        for i, head in enumerate(heads):
            margins[i, held_out] = head.rewards(test.chosen) - head.rewards(test.rejected)
    accuracies = [pair_accuracy(of_penalty) for of_penalty in margins]
    best = int(np.argmax(accuracies))
    return CrossValidation(L2_PENALTIES[best], accuracies[best], margins[best])


def fit_linear_head(features_for: FeaturesFor, objective: Objective, fold_of: np.ndarray) -> FittedHead:
    """Fit a linear head whose L2 penalty is chosen by cross-validation inside the training pairs.

    Args:
        features_for: As in `cross_validate`; given None, it selects latents by all pairs.
        objective: Objective on all N pairs.
        fold_of: (N,) number of each pair's fold, see `group_folds`.

    Example:
        >>> pairs = PairFeatures(chosen=np.array([[1.0], [2], [3], [2]]), rejected=np.array([[0.0], [1], [1], [0]]))
        >>> objective = Objective("margin", gamma=1.0, margins=np.zeros(4))
        >>> head = fit_linear_head(lambda fold: pairs, objective, fold_of=np.array([0, 0, 1, 1]))
        >>> head.validation_accuracy, head.layers[0][0].shape
        (1.0, (1, 1))
    """
    found = cross_validate(features_for, objective, fold_of)
    (head,) = fit_linear_path(features_for(None), objective, (found.l2,))
    return replace(head, validation_accuracy=found.accuracy, held_out_margins=found.margins)
