"""Plots of an alignment run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..evaluation import STYLE
from ..runtime import replacing_file

LABELS = {
    "reward": "mean reward of answers (SparseRM)",
    "kl": "KL to the first policy, nats an answer",
    "tokens": "tokens an answer",
    "alike": "answers that begin alike %",
    "preference_accuracy": "preference accuracy %",
    "mc1": "TruthfulQA MC1 %",
    "mc2": "TruthfulQA MC2 %",
}
SHARES = ("alike", "outside", "preference_accuracy", "mc1", "mc2")


def draw_rewards(pairs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rewards of chosen and rejected responses, and the differences of kept and of dropped pairs."""
    chosen, rejected = (np.array([pair[side] for pair in pairs]) for side in ("chosen_reward", "rejected_reward"))
    kept, margins = np.array([pair["kept"] for pair in pairs], dtype=bool), chosen - rejected
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.hist([chosen, rejected], bins=30, histtype="step", linewidth=2, label=["chosen", "rejected"])
        left.set(xlabel="reward", ylabel="responses")
        right.hist([margins[kept], margins[~kept]], bins=30, stacked=True, label=["kept", "dropped"])
        right.set(xlabel="reward of the chosen response minus that of the rejected one", ylabel="pairs")
        left.legend()
        right.legend()
        _save(figure, path)


def draw_rounds(first: dict[str, Any], rounds: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw each measure over the rounds, with a line for each arm."""
    names = [name for name in LABELS if name in first]
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 3.2 * -(-len(names) // 3)), layout="constrained")
        all_axes = np.ravel(figure.subplots(-(-len(names) // 3), 3, squeeze=False))
        for axes, name in zip(all_axes, names, strict=False):
            factor = 100 if name in SHARES else 1
            for arm, found in rounds.items():
                values = [factor * figures[name] for figures in [first, *found]]
                axes.plot(range(len(values)), values, marker="o", label=arm)
            axes.set_title(LABELS[name])
            axes.set_xticks(range(max(map(len, rounds.values())) + 1))
            axes.set_xlabel("round")
        for axes in all_axes[len(names) :]:
            axes.set_axis_off()
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(rounds))
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white")
