"""Fit the gate of a combined reward model, which weighs the objectives by the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax

from .calibration import fit_temperature
from .folds import FOLDS, group_folds, pairs_outside

GATE_PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # factors of half the sum of the squared weights in the loss
MOST_SCALE = np.log(100)  # largest logarithm of the scale of the margins, relative to their size


@dataclass(frozen=True)
class FittedGate:
    """A gate on K features of prompts; see `PromptGate`.

    Attributes:
        weight: (objectives, K) weights.
        average: (K,) features of the average prompt.
        gain: Gain in the mean log likelihood of a held-out preference, over the sum without a gate.
        error: Standard error of the gain.
    """

    weight: np.ndarray
    average: np.ndarray
    gain: float
    error: float

    @property
    def helps(self) -> bool:
        """True if the gain is more than its standard error."""
        return self.gain > self.error


def fit_gate(prompts: np.ndarray, margins: np.ndarray, groups: np.ndarray) -> FittedGate:
    """Fit a gate that makes the preferences of pairs most likely, with an L2 penalty chosen by cross-validation.

    The probability of a preference is sigmoid(scale * sum of share * margin), where the shares are `objectives *
    softmax(weight @ (features - average))`.

    Args:
        prompts: (N, K) features of the prompts.
        margins: (N, objectives) weighted reward differences by objective, chosen minus rejected.
        groups: (N,) number of each pair's prompt.

    Example:
        The sign of the first feature tells which objective decides:

        >>> rng = np.random.default_rng(0)
        >>> prompts, margins = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
        >>> deciding = (prompts[:, 0] > 0).astype(int)
        >>> margins[np.arange(400), deciding] = np.abs(margins[np.arange(400), deciding])
        >>> gate = fit_gate(prompts, margins, np.arange(400))
        >>> gate.helps, bool(gate.weight[1, 0] > 1), bool(abs(gate.weight[1, 1]) < 0.2)
        (True, True, True)
    """
    folds = group_folds(groups, FOLDS, seed=0)
    losses = np.zeros((len(GATE_PENALTIES) + 1, len(margins)))  # the last row: without a gate
    for fold in np.unique(folds):
        train, held_out = pairs_outside(folds, fold), np.flatnonzero(folds == fold)
        for i, (weight, scale) in enumerate(_fit_path(prompts[train], margins[train])):
            centred = prompts[held_out] - prompts[train].mean(0)
            losses[i, held_out] = _losses(weight, scale, centred, margins[held_out])
        temperature = fit_temperature(margins[train].sum(1))
        losses[-1, held_out] = np.logaddexp(0.0, -margins[held_out].sum(1) / temperature)
    best = int(losses[:-1].mean(1).argmin())
    gains = losses[-1] - losses[best]
    weight, _ = _fit_path(prompts, margins)[best]
    return FittedGate(weight, prompts.mean(0), float(gains.mean()), float(gains.std() / np.sqrt(len(gains))))


def _fit_path(prompts: np.ndarray, margins: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Fit a gate to (N, K) prompts for each penalty, the strongest first; returns weights and scale of each gate."""
    spread = prompts.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    x = (prompts - prompts.mean(0)) / spread
    size = float(np.sqrt((margins**2).sum(1).mean())) or 1.0
    scaled, objectives = margins / size, margins.shape[1]
    start, found = np.zeros(objectives * x.shape[1] + 1), []
    bounds = [(None, None)] * (len(start) - 1) + [(-MOST_SCALE, MOST_SCALE)]
    for l2 in GATE_PENALTIES:
        start = minimize(_objective, start, (x, scaled, l2), jac=True, method="L-BFGS-B", bounds=bounds).x
        found.append((start[:-1].reshape(objectives, -1) / spread, float(np.exp(start[-1])) / size))
    return found


def _objective(
    parameters: np.ndarray, prompts: np.ndarray, margins: np.ndarray, l2: float
) -> tuple[float, np.ndarray]:
    """Compute the penalised loss and its gradient; the last parameter is the logarithm of the scale."""
    weight, scale = parameters[:-1].reshape(margins.shape[1], -1), np.exp(parameters[-1])
    shares = len(weight) * softmax(prompts @ weight.T, 1)  # (N, objectives)
    sums = (shares * margins).sum(1)
    z = scale * sums
    slope = -expit(-z) / len(z)  # derivative of the loss with respect to z
    by_logit = slope[:, None] * scale * shares * (margins - sums[:, None] / len(weight))
    gradient = by_logit.T @ prompts + l2 * weight
    loss = np.logaddexp(0.0, -z).mean() + 0.5 * l2 * (weight**2).sum()
    return loss, np.append(gradient.ravel(), slope @ z)


def _losses(weight: np.ndarray, scale: float, prompts: np.ndarray, margins: np.ndarray) -> np.ndarray:
    shares = len(weight) * softmax(prompts @ weight.T, 1)
    return np.logaddexp(0.0, -scale * (shares * margins).sum(1))
