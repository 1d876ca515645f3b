"""Evaluations as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..evaluation import Evaluation, PairMetrics, RowName, Score, pair_accuracy
from ..hub_cards.render import ADAPTER_ROWS
from ..runtime import Console


def accuracy_table(title: str) -> Table:
    """Make an empty table of accuracies; see `add_accuracy`."""
    table = Table(title=escape(title))
    table.add_column("", overflow="fold")
    for column in ("accuracy %", "95% interval", "mean margin"):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def add_accuracy(table: Table, name: str, metrics: PairMetrics, bold: bool = False) -> None:
    """Add the row of a reward model or of a control to an `accuracy_table`."""
    interval = f"{100 * metrics.low:.1f} to {100 * metrics.high:.1f}"
    cells = (f"{100 * metrics.accuracy:.1f}", interval, f"{metrics.margin:.3f}")
    table.add_row(escape(name), *cells, style="bold" if bold else None)


def print_by_length(kinds: Mapping[str, np.ndarray], rows: Iterable[tuple[str, np.ndarray]]) -> None:
    """Print a table of accuracies by which response is longer.

    Args:
        kinds: Indices of the pairs of each kind; see `pairs_by_length`.
        rows: Names and (N,) margins of reward models or controls.
    """
    filled = {kind: pairs for kind, pairs in kinds.items() if len(pairs)}
    table = Table(title="Accuracy % by which response is longer")
    table.add_column("", overflow="fold")
    for kind, pairs in filled.items():
        table.add_column(f"{kind}\n{len(pairs)} pairs", justify="right", no_wrap=True)
    for name, margins in rows:
        table.add_row(escape(name), *(f"{100 * pair_accuracy(margins[pairs]):.1f}" for pairs in filled.values()))
    Console().print(table)


def print_accuracies(evaluation: Evaluation, title: str) -> None:
    """Print a table of accuracies, the reward model first, then its controls."""
    metrics = evaluation.metrics
    table = accuracy_table(f"{title}, {evaluation.pairs} pairs")
    for name, row in metrics.items():
        add_accuracy(table, name, row, bold=name == RowName.REWARD_MODEL)
    for name, row in evaluation.by_objective.items():
        add_accuracy(table, f"{RowName.own(name)}, {row.pairs}", row)
    Console().print(table)


def print_evaluation(evaluation: Evaluation, title: str) -> None:
    """Print the tables of an evaluation: accuracies, accuracies by length, and attacks."""
    print_accuracies(evaluation, title)
    print_by_length(evaluation.by_length, evaluation.margins.items())
    followed = ", ".join(f"{style} {x:+.2f}" for style, x in evaluation.style_correlations().items())
    Console().print(f"Reward differences correlate with differences in style: {followed}.")
    Console().print(
        f"Probabilities are off by {100 * evaluation.calibration_error:.1f} points (expected calibration error), with "
        f"the temperature {evaluation.temperature:.3g}."
    )
    _print_attacks(evaluation)
    _warn_without_controls(evaluation.metrics)


def _print_attacks(evaluation: Evaluation) -> None:
    if not evaluation.attacks:
        return
    prompts = evaluation.attacks[0].as_text.pairs
    table = Table(
        title=f"How often a response made of the template's marks beats the chosen one, {prompts} prompts",
        caption="Best is 0. As tokens: a trainer passes token ids. As text: messages, in which marks are plain text. "
        "The manual's page on safety says what to do.",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for column in ("as tokens %", "as text %"):
        table.add_column(column, justify="right", no_wrap=True)
    for attack in evaluation.attacks:
        sides = (attack.as_tokens, attack.as_text)
        table.add_row(
            escape(attack.name), *(f"{100 * m.accuracy:.0f} ({100 * m.low:.0f} to {100 * m.high:.0f})" for m in sides)
        )
    Console().print(table)


def print_adapter(metrics: Mapping[str, float]) -> None:
    """Print how an adapter changed what the latents explain, from the metrics of `SparseRMTrainer.evaluate`."""
    if "adapted_l0" not in metrics:
        return
    table = Table(title="What the adapter changed")
    table.add_column("", overflow="fold")
    for column in ("without adapter", "with adapter"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, title, scale in ADAPTER_ROWS:
        found = [metrics.get(f"{when}_{name}") for when in ("frozen", "adapted")]
        table.add_row(title, *("" if value is None else f"{scale * value:.1f}" for value in found))
    Console().print(table)


def print_benchmark(reports: dict[str, list[Score]], title: str) -> None:
    """Print a table of the scores of a benchmark, the reward model beside its controls."""
    table = Table(title=f"{escape(title)}, in %")
    table.add_column("", no_wrap=True)
    for column in ("prompts", *reports):
        table.add_column(escape(column), justify="right")
    lines = list(zip(*reports.values(), strict=True))
    for i, line in enumerate(lines):
        summary = line[0].summary
        table.add_row(
            escape(line[0].name),
            str(line[0].prompts),
            *(f"{100 * score.value:.1f}" for score in line),
            style="bold" if summary else None,
            end_section=i + 1 < len(lines) and summary != lines[i + 1][0].summary,
        )
    Console().print(table)
    _warn_without_controls(reports)


def _warn_without_controls(rows: Sized) -> None:
    if len(rows) == 1:
        Console().print("There are no controls beside this model: an accuracy alone says little.")
