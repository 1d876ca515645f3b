"""`sparserm edit`: copy a reward model and steer or name latents of the copy."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..conversations import load_preferences
from ..explanations import EditEffect, edit_model
from ..runtime import Console, SparseRMError, process_state, say
from .arguments import add_cache_dir, add_reward_model

EXAMPLE = "sparserm edit my-reward-model --steer 1646=0 --dataset my-test-pairs.jsonl --output_dir edited"
NEXT = "To score with the copy: sparserm score {output_dir} answers.jsonl --output scores.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm edit`."""
    add_reward_model(parser)
    edits = parser.add_argument_group("edits")
    for name, value, text in (
        ("--steer", "FACTOR", "Multiply what a latent adds to rewards: 0 removes the latent, 1 restores it."),
        ("--label", "NAME", "Name a latent."),
    ):
        edits.add_argument(
            name,
            nargs="+",
            action="extend",
            default=[],
            metavar=f"LATENT={value}",
            type=_assignment,
            help=text,
        )
    edits.add_argument(
        "--pessimism",
        type=float,
        help="Standard deviations over the ensemble to subtract from each reward. Needs `train --ensemble`.",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="Preference pairs to measure the effect on: a file or a Hub id.")
    data.add_argument("--split", default="test", help="Split of the dataset (default: %(default)s).")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="Folder to write.")
    add_cache_dir(parser.add_argument_group("computing"))


def _assignment(text: str) -> tuple[int, str]:
    latent, equals, value = text.partition("=")
    if not latent.isdigit() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must look like 123=VALUE, with the id of a latent")
    return int(latent), value


def run(args: argparse.Namespace) -> None:
    """Write the edited copy and print the effect of the edit."""
    factors = {latent: _factor(latent, text) for latent, text in args.steer}
    if not factors and not args.label and args.pessimism is None:
        raise SparseRMError(
            "There is nothing to edit: use --steer LATENT=FACTOR, --label LATENT=NAME or --pessimism NUMBER."
        )
    pairs = load_preferences(args.dataset, args.split) if args.dataset else None
    options = (pairs, args.revision, args.cache_dir, args.pessimism)
    effect = edit_model(args.model, args.output_dir, factors, dict(args.label), *options)
    if not process_state().is_main_process:
        return
    if effect:
        _print_effect(effect, f"{args.model} on {args.dataset}")
    changed = factors or args.pessimism is not None
    unmeasured = "" if effect or not changed else " Its effect was not measured: name pairs with --dataset."
    say(f"Wrote {args.output_dir}.{unmeasured}")


def _factor(latent: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SparseRMError(f"Latent {latent} has the factor {text!r}, but it must be a number.") from None


def _print_effect(effect: EditEffect, title: str) -> None:
    table = Table(title=f"{escape(title)}, {effect.before.metrics.pairs} pairs")
    table.add_column("")
    for column in ("accuracy %", "95% interval", "mean margin", "mean reward", "standard deviation"):
        table.add_column(column, justify="right")
    for name, rewards in (("before", effect.before), ("after", effect.after)):
        metrics = rewards.metrics
        interval = f"{100 * metrics.low:.1f} to {100 * metrics.high:.1f}"
        accuracy = f"{100 * metrics.accuracy:.1f}"
        table.add_row(name, accuracy, interval, *(f"{x:.3f}" for x in (metrics.margin, rewards.mean, rewards.std)))
    Console().print(table)
