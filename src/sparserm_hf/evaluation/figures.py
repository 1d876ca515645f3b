"""Draw the plots of an evaluation: PNG for model cards, SVG in the page's own colours for the report."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..runtime import visible
from .calibration_error import calibration_bins
from .evaluation import Evaluation
from .metrics import PairMetrics
from .row_names import RowName

INK, ACCENT, ACCENT_2, MUTED = "#1a1c1f", "#2f6fde", "#d9822b", "#8a919c"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sparserm",
    "text.parse_math": False,  # a name may hold dollars
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}
Draw = Callable[[Axes], None]


def draw_accuracy(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the accuracies with their 95% intervals, the reward model first."""
    metrics = evaluation.metrics
    for place, (name, row) in enumerate(metrics.items()):
        _interval(axes, row, place, ACCENT if name == RowName.REWARD_MODEL else MUTED, horizontal=True)
    axes.set_yticks(range(len(metrics)), [visible(name) for name in metrics])
    axes.invert_yaxis()
    axes.axvline(50, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xlabel("accuracy in %, 95% interval (dotted: chance)")


def draw_length(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the accuracy for pairs whose chosen response is shorter, equally long or longer.

    For a debiased model, the accuracies without debiasing are drawn too.
    """
    rows = [name for name in (RowName.REWARD_MODEL, RowName.UNDEBIASED) if name in evaluation.margins]
    kinds = {kind: len(of) for kind, of in evaluation.by_length.items() if len(of)}
    for i, (name, colour) in enumerate(zip(rows, (ACCENT, ACCENT_2), strict=False)):
        for place, row in enumerate(evaluation.metrics_by_length(name).values()):
            label = name if place == 0 else None
            _interval(axes, row, place + 0.12 * (2 * i + 1 - len(rows)), colour, horizontal=False, label=label)
    axes.set_xticks(range(len(kinds)), [f"{kind}\n({count} pairs)" for kind, count in kinds.items()])
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.axhline(50, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_ylabel("accuracy in %")
    if len(rows) > 1:
        axes.legend(frameon=False)


def draw_calibration(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the accuracy of the preferred responses, those with the higher reward, by their predicted probability."""
    bins = calibration_bins(evaluation.margins[RowName.REWARD_MODEL], evaluation.temperature)
    axes.plot([50, 100], [50, 100], color=MUTED, linewidth=0.8, linestyle=":")
    axes.plot(100 * bins.confidence, 100 * bins.accuracy, color=ACCENT, linewidth=1)
    axes.scatter(100 * bins.confidence, 100 * bins.accuracy, s=10 + 150 * bins.count / bins.count.max(), color=ACCENT)
    axes.set_xlabel("probability of the preferred response in %")
    axes.set_ylabel("it is the chosen one, in %")


def draw_k(axes: Axes, accuracies: Mapping[str, float], chosen: int) -> None:
    """Draw the cross-validated accuracy by the number of latents on each side.

    Args:
        axes: Axes to draw into.
        accuracies: Accuracies by number of latents.
        chosen: Number of latents to mark.
    """
    numbers = [int(k) for k in accuracies]
    values = [100 * accuracy for accuracy in accuracies.values()]
    axes.plot(numbers, values, color=ACCENT, linewidth=1, marker="o", markersize=4)
    axes.axvline(chosen, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("latents on each side (dotted: the number taken)")
    axes.set_ylabel("accuracy in %")


def _interval(
    axes: Axes, row: PairMetrics, place: float, colour: str, horizontal: bool, label: str | None = None
) -> None:
    value = 100 * row.accuracy
    ends = [[value - 100 * row.low], [100 * row.high - value]]
    if horizontal:
        axes.errorbar(value, place, xerr=ends, fmt="o", color=colour, capsize=3, label=label)
    else:
        axes.errorbar(place, value, yerr=ends, fmt="o", color=colour, capsize=3, label=label)


def save_png(evaluation: Evaluation, path: Path) -> None:
    """Write accuracy, length and calibration side by side to a PNG file."""
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 3.4), layout="constrained")
        drawings = (draw_accuracy, draw_length, draw_calibration)
        for axes, draw in zip(np.ravel(figure.subplots(1, len(drawings))), drawings, strict=True):
            draw(axes, evaluation)
        figure.savefig(path, format="png", dpi=110, facecolor="white")


def as_svg(draw: Draw, title: str, width: float = 4.4, height: float = 2.8) -> str:
    """Draw an SVG element whose lines and letters have the colour of the surrounding text.

    Args:
        draw: Function that draws into axes.
        title: Description for screen readers.
        width: Width in inches.
        height: Height in inches.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', svg)
    return svg.replace(INK, "currentColor")
