"""The arms of an alignment run, one for each filter, and the result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .responses import Judge

SPARSERM, NO_FILTER, RANDOM, DENSE, CLASSIFIER = "SparseRM", "no filter", "random filter", "dense", "RewardTrainer"
FIRST = "first policy"


@dataclass(frozen=True)
class Arm:
    """A way to filter pairs, and the policy trained on the pairs that it keeps.

    Attributes:
        name: Name in the report.
        judge: Function from conversations to rewards; None if the filter needs no rewards.
        like: Judge whose number of kept pairs a random filter copies.
    """

    name: str
    judge: Judge | None = None
    like: Judge | None = None

    @property
    def folder(self) -> str:
        """Name of the arm's folder."""
        return self.name.lower().replace(" ", "-")


@dataclass(frozen=True)
class Outcome:
    """The result of an alignment run.

    Attributes:
        first: Figures of the first policy, before the training.
        rounds: Figures of each round, by the name of the arm.
        ended: Reason why an arm ended before its last round, by the name of the arm.
        best: Number of the SparseRM arm's round with the highest mean reward of answers. Stopped rounds do not count;
            None if no other round is left.
        adapter: Folder with the adapter of the best round; None without a best round.
    """

    first: dict[str, Any]
    rounds: dict[str, list[dict[str, Any]]]
    ended: dict[str, str]
    best: int | None
    adapter: Path | None

    @property
    def kept(self) -> dict[str, Any] | None:
        """Figures of the best round; None without a best round."""
        return None if self.best is None else self.rounds[SPARSERM][self.best - 1]
