"""Explanations in the terminal: tables of latents, responses with their tokens coloured."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text as Line

from ..drift import Drift
from ..modeling.configuration_sparserm import SparseRMConfig
from .attribution import LatentEffect, TextExplanation, TokenEffect, contrast
from .editing import Effect
from .latents import LatentReport
from .rows import Explained

UP, DOWN = (34, 160, 90), (210, 70, 70)  # background of a token that adds, that takes away


def print_explanation(explained: Explained, config: SparseRMConfig, title: str, top: int) -> None:
    """Print why a row got its reward, or its two.

    Args:
        explained: Of a text, or of both sides of a pair.
        config: The reward model's.
        title: What the row is called.
        top: Latents to show.
    """
    console = Console()
    if len(explained) == 1:
        (explanation,) = explained.values()
        console.print(_of_text(explanation, title, top))
        _print_sum(console, explanation, config)
        console.print(_coloured(explanation.tokens), "\n")
        return
    chosen, rejected = explained.values()
    console.print(_of_pair(chosen, rejected, title, top))
    for name, explanation in (("chosen", chosen), ("rejected", rejected)):
        console.print(f"[bold]{name}[/]", end=" ")
        _print_sum(console, explanation, config)
        console.print(_coloured(explanation.tokens))
    console.print()


def _print_sum(console: Console, explanation: TextExplanation, config: SparseRMConfig) -> None:
    deviation = (explanation.reward - config.reward_mean) / config.reward_std if config.reward_std else 0.0
    added = explanation.reward - explanation.base - explanation.unexplained
    console.print(
        f"reward {explanation.reward:.3f} = {explanation.base:.3f} of the average response {added:+.3f} of latents "
        f"{explanation.unexplained:+.1e} unexplained; {deviation:+.1f} standard deviations"
    )


def _of_text(explanation: TextExplanation, title: str, top: int) -> Table:
    table = Table(
        title=escape(title), caption="Without its direction: how the reward changes; = as what it carries, to 10%."
    )
    for column in ("latent", "side", "promotes"):
        table.add_column(column)
    for column in ("adds", "carries", "without its direction"):
        table.add_column(column, justify="right")
    for effect in explanation.latents[:top]:
        removed = "" if effect.removed is None else f"{effect.removed:+.3f} {'=' if effect.as_stated else '≠'}"
        numbers = (f"{effect.contribution:+.3f}", f"{effect.own:+.3f}", removed)
        table.add_row(str(effect.latent), effect.side, _name(effect), *numbers)
    return table


def _of_pair(chosen: TextExplanation, rejected: TextExplanation, title: str, top: int) -> Table:
    margin = chosen.reward - rejected.reward
    table = Table(title=f"{escape(title)}: chosen {'wins' if margin > 0 else 'loses'} by {margin:+.3f}")
    sides = [{effect.latent: effect for effect in of.latents} for of in (chosen, rejected)]
    for column in ("latent", "side", "promotes"):
        table.add_column(column)
    for column in ("chosen", "rejected", "difference"):
        table.add_column(column, justify="right")
    for latent, difference in list(contrast(chosen, rejected).items())[:top]:
        effects = [side[latent] for side in sides]
        numbers = [*(effect.contribution for effect in effects), difference]
        table.add_row(str(latent), effects[0].side, _name(effects[0]), *(f"{number:+.3f}" for number in numbers))
    return table


def _name(latent: LatentEffect | LatentReport) -> str:
    """What the user calls a latent, or the words that it promotes."""
    return escape(latent.label or ", ".join(latent.promotes[:3]))


def print_latents(reports: list[LatentReport], title: str) -> None:
    """Print what latents are: a table of figures, then the passages of each."""
    console = Console()
    table = Table(
        title=escape(title), caption="Moves: standard deviation of what it adds. Length: correlation with it."
    )
    for column in ("latent", "side", "promotes"):
        table.add_column(column)
    for column in ("weight", "moves", "fires: chosen %", "rejected %", "length"):
        table.add_column(column, justify="right")
    for report in reports:
        weight = next(iter(report.weights.values()), None)
        rates = [
            "" if rate is None else f"{100 * rate:.0f}" for rate in (report.firing_chosen, report.firing_rejected)
        ]
        figures = ("" if weight is None else f"{weight:+.3f}", f"{report.importance:.3f}", *rates)
        table.add_row(str(report.latent), report.side, _name(report), *figures, f"{report.length_correlation:+.2f}")
    console.print(table)
    for report in reports:
        heading = f"\n[bold]latent {report.latent}[/] {escape(report.label)}"
        console.print(heading + (f" [dim]{report.link}[/]" if report.link else ""))
        for what, examples in (("strongest", report.strongest), ("weakest", report.weakest)):
            for example in examples:
                console.print(f"[dim]{what:>9}[/] {example.strength:8.2f} ", end=" ")
                console.print(_shaded(example.tokens, example.strengths), soft_wrap=True)


def print_drift(drift: Drift, config: SparseRMConfig, title: str, alarm: float, top: int) -> None:
    """Print how far responses are from those of training, and the features that moved most."""
    console, k = Console(), len(config.latents)
    table = Table(
        title=f"{escape(title)}, {drift.texts} responses", caption="Shifts: in standard deviations of training."
    )
    for column in ("latent", "read of it", "side", "words"):
        table.add_column(column)
    for column in ("shift", "outside %"):
        table.add_column(column, justify="right")
    for i in np.argsort(-np.abs(drift.shift), kind="stable")[:top].tolist():
        latent = config.latents[i % k]
        name = config.latent_labels.get(str(latent)) or ", ".join(config.latent_promotes[i % k][:3])
        read = config.readings[i // k].replace("_", " ")
        figures = f"{drift.shift[i]:+.2f}", f"{100 * drift.outside[i]:.1f}"
        table.add_row(str(latent), read, config.latent_sides[i % k], escape(name), *figures)
    console.print(table)
    flat = drift.flat()
    console.print(
        f"Features moved by {flat['drift/shift']:.2f} (root mean square), rewards by {drift.reward_shift:+.2f} "
        f"standard deviations; {100 * drift.outside_share:.1f}% of the features are outside the range that holds 99% "
        "in training."
    )
    if drift.disagreement is None:
        console.print("There is no dense twin beside this model to compare with.")
    else:
        console.print(
            f"The dense twin contradicts {100 * drift.disagreement:.1f}% of the rewards more than 99% of those in "
            "training."
        )
    alarms = drift.alarms(alarm)
    verdict = f"[bold red]Alarm[/]: {'; '.join(alarms)}" if alarms else "[bold green]No alarm[/]"
    console.print(f"{verdict} (the threshold is {100 * alarm:g}%).")


def print_effect(before: Effect, after: Effect, title: str) -> None:
    """Print what an edit does to rewards."""
    table = Table(title=f"{escape(title)}, {before.metrics.pairs} pairs")
    table.add_column("")
    for column in ("accuracy %", "95% interval", "mean margin", "mean reward", "standard deviation"):
        table.add_column(column, justify="right")
    for name, effect in (("before", before), ("after", after)):
        metrics = effect.metrics
        interval = f"{100 * metrics.low:.1f} to {100 * metrics.high:.1f}"
        accuracy = f"{100 * metrics.accuracy:.1f}"
        table.add_row(name, accuracy, interval, *(f"{x:.3f}" for x in (metrics.margin, effect.mean, effect.std)))
    Console().print(table)


def _coloured(tokens: list[TokenEffect]) -> Line:
    return _shaded([token.text for token in tokens], [token.contribution for token in tokens])


def _shaded(texts: list[str], values: list[float]) -> Line:
    """Tokens on a background as strong as their values: green above zero, red below."""
    line = Line()
    largest = max(map(abs, values), default=0.0) or 1.0
    for text, value in zip(texts, values, strict=True):
        colour = [round(255 + abs(value) / largest * (c - 255)) for c in (UP if value > 0 else DOWN)]
        line.append(text.replace("\n", "↵"), style=f"black on rgb({colour[0]},{colour[1]},{colour[2]})")
    return line
