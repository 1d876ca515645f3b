"""`sparserm monitor`: measure how far responses drifted from those of training."""

from __future__ import annotations

import argparse

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from ..conversations import iterate_rows
from ..monitoring import ALARM, Drift, monitor
from ..runtime import Console
from .arguments import add_scoring_model

EXAMPLE = "sparserm monitor my-reward-model policy-responses.jsonl"
NEXT = "To see why responses got their rewards: sparserm explain {model} {input}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm monitor`."""
    add_scoring_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "input", help="A policy's responses, rows as `sparserm score` takes them: a file, or - for stdin."
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--alarm",
        type=float,
        default=ALARM,
        help="Raise an alarm above this share of features outside their range in training, or of rewards that the "
        "dense twin contradicts; without drift, each share is 0.01 (default: %(default)s).",
    )
    output.add_argument(
        "--top", type=int, default=10, help="Latents to show, those that moved most (default: %(default)s)."
    )


def run(args: argparse.Namespace) -> int:
    """Print the drift; returns 1 if the responses drifted too far."""
    drift = monitor(args.model, iterate_rows(args.input), args.input, args.max_length, args.dtype, args.revision)
    _print_drift(drift, f"{args.input} against the training of {args.model}", args.alarm, args.top)
    return 1 if drift.alarms(args.alarm) else 0


def _print_drift(drift: Drift, title: str, alarm: float, top: int) -> None:
    console, caption = Console(), "Shift: in standard deviations of training."
    table = Table(title=f"{escape(title)}, {drift.responses} responses", caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("latent", justify="right")
    table.add_column("name", overflow="fold", ratio=1)
    for column in ("shift", "outside %"):
        table.add_column(column, justify="right")
    latents = list(drift.latents.items())
    for i in np.argsort(-np.abs(drift.shift), kind="stable")[:top].tolist():
        figures = f"{drift.shift[i]:+.2f}", f"{100 * drift.outside[i]:.1f}"
        latent, name = latents[i]
        table.add_row(str(latent), escape(name), *figures)
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
