"""Evaluations as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sized

from rich.markup import escape
from rich.table import Table

from ..evaluation import Evaluation, RowName, Score
from ..runtime import Console


def print_evaluation(evaluation: Evaluation, title: str) -> None:
    """Print a table of accuracies, the reward model first, then its controls."""
    metrics = evaluation.metrics
    table = Table(title=f"{escape(title)}, {next(iter(metrics.values())).pairs} pairs")
    table.add_column("", no_wrap=True)
    for column in ("accuracy %", "95% interval", "mean margin"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in metrics.items():
        interval = f"{100 * row.low:.1f} to {100 * row.high:.1f}"
        style = "bold" if name == RowName.REWARD_MODEL else None
        table.add_row(escape(name), f"{100 * row.accuracy:.1f}", interval, f"{row.margin:.3f}", style=style)
    Console().print(table)
    _print_by_length(evaluation)
    followed = ", ".join(f"{style} {x:+.2f}" for style, x in evaluation.style_correlations().items())
    Console().print(f"Reward differences correlate with differences in style: {followed}.")
    Console().print(
        f"Probabilities are off by {100 * evaluation.calibration_error:.1f} points (expected calibration error), with "
        f"the temperature {evaluation.temperature:.3g}."
    )
    _print_attacks(evaluation)
    _warn_without_controls(metrics)


def _print_attacks(evaluation: Evaluation) -> None:
    if not evaluation.attacks:
        return
    prompts = evaluation.attacks[0].as_text.pairs
    table = Table(title=f"How often the template's own marks beat the chosen response, {prompts} prompts")
    table.add_column("", no_wrap=True)
    for column in ("as tokens %", "as text %"):
        table.add_column(column, justify="right", no_wrap=True)
    for attack in evaluation.attacks:
        sides = (attack.as_tokens, attack.as_text)
        table.add_row(
            escape(attack.name), *(f"{100 * m.accuracy:.0f} ({100 * m.low:.0f} to {100 * m.high:.0f})" for m in sides)
        )
    Console().print(table)


def _print_by_length(evaluation: Evaluation) -> None:
    table = Table(title="Accuracy % by which response is longer")
    table.add_column("", no_wrap=True)
    for kind, pairs in evaluation.by_length.items():
        if len(pairs):
            table.add_column(f"{kind}\n{len(pairs)} pairs", justify="right", no_wrap=True)
    for name in evaluation.margins:
        kinds = evaluation.metrics_by_length(name).values()
        table.add_row(escape(name), *(f"{100 * kind.accuracy:.1f}" for kind in kinds))
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
