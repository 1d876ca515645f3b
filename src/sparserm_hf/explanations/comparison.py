"""A comparison of two reward models: accuracies side by side, and the pairs on which they disagree, ranked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..evaluation import (
    PairedDifference,
    PairMetrics,
    correlation,
    pair_credits,
    pair_metrics,
    paired_difference,
    pairs_by_length,
)
from ..runtime import visible
from .explained_pairs import ExplainedPair


@dataclass(frozen=True)
class Disagreement:
    """A pair on which one reward model prefers the chosen response and the other the rejected response.

    Attributes:
        row: Number of the pair's row in the data, from 1.
        prompt: The prompt as text; empty if there is none.
        chosen: The chosen response as text.
        rejected: The rejected response as text.
        margins: Reward difference, chosen minus rejected, of each model.
        deviations: The margins in standard deviations of each model's margins over all compared pairs.
        explanations: Explanation of the pair by each model's latents; None for a model that is not a SparseRM.
    """

    row: int
    prompt: str
    chosen: str
    rejected: str
    margins: tuple[float, float]
    deviations: tuple[float, float]
    explanations: tuple[ExplainedPair | None, ExplainedPair | None]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two reward models on the same N preference pairs.

    Attributes:
        names: Names of the two models.
        margins: (2, N) reward differences, chosen minus rejected, of each model.
        tokens: (N, 2) lengths of the chosen and of the rejected responses, in tokens of the first model.
        rows: (N,) numbers of the pairs' rows in the data, from 1.
        left_out: Number of rows that were left out because one of the models cannot use them: a response is empty or
            too long, or both texts are the same.
        disagreements: The pairs on which the models disagree most, the strongest disagreement first.

    Example:
        >>> margins = np.tile([[0.5, 1.5, -0.2, 1.0], [0.1, 2.0, 0.3, -1.0]], 25)
        >>> tokens = np.tile([[9, 4], [5, 5], [3, 7], [8, 2]], (25, 1))
        >>> Comparison(("A", "B"), margins, tokens, np.arange(100) + 1, left_out=0, disagreements=())
        Comparison on 100 pairs, accuracy (95% interval):
          A           75.0% (65.7 to 82.5)
          B           75.0% (65.7 to 82.5)
          difference  +0.0 (-14.1 to +14.1) points, A minus B
        The reward differences correlate by +0.37. The models disagree on 50 pairs.
    """

    names: tuple[str, str]
    margins: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray
    left_out: int
    disagreements: tuple[Disagreement, ...]

    def __repr__(self) -> str:
        first, second = map(visible, self.names)
        width = max(len(first), len(second), len("difference"))
        rows = [f"  {name:{width}}  {metrics}" for name, metrics in zip((first, second), self.metrics, strict=True)]
        return "\n".join(
            [
                f"Comparison on {self.pairs} pairs, accuracy (95% interval):",
                *rows,
                f"  {'difference':{width}}  {self.difference} points, {first} minus {second}",
                f"The reward differences correlate by {self.correlation:+.2f}. The models disagree on "
                f"{len(self.disagreeing)} pairs.",
            ]
        )

    @property
    def pairs(self) -> int:
        """Number of compared pairs, N."""
        return self.margins.shape[1]

    @property
    def metrics(self) -> tuple[PairMetrics, PairMetrics]:
        """Accuracy, interval and mean margin of each model."""
        return pair_metrics(self.margins[0]), pair_metrics(self.margins[1])

    @property
    def difference(self) -> PairedDifference:
        """Accuracy of the first model minus that of the second, with its paired interval."""
        return paired_difference(*pair_credits(self.margins))

    @property
    def correlation(self) -> float:
        """Pearson's correlation of the two models' margins; 0 if either has the same margin on all pairs."""
        return correlation(*self.margins)

    @property
    def by_length(self) -> dict[str, np.ndarray]:
        """Indices of the pairs whose chosen response is shorter, as long, or longer than the rejected response."""
        return pairs_by_length(self.tokens)

    @property
    def deviations(self) -> np.ndarray:
        """(2, N) margins in standard deviations of each model's margins."""
        spread = self.margins.std(axis=1, keepdims=True)
        return self.margins / np.where(spread > 0, spread, 1.0)

    @property
    def disagreeing(self) -> np.ndarray:
        """Indices of the pairs on which the models prefer different responses, the strongest disagreement first.

        Its strength is the distance of the two `deviations`. A tie is no preference.
        """
        found = np.flatnonzero(np.prod(np.sign(self.margins), axis=0) < 0)
        strength = np.abs(np.subtract(*self.deviations[:, found]))
        return found[np.argsort(-strength, kind="stable")]
