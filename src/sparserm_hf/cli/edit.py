"""`sparserm edit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..conversations import load_preferences
from ..explanations import edit_model
from ..runtime import SparseRMError, process_state, say
from .arguments import add_cache_dir, add_revision, add_split
from .explanation_tables import print_effect

EXAMPLE = 'sparserm edit my-reward-model --steer 1646=0 --label 1646="starts with Sure" --output_dir corrected'


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("edit", help=summary, example=EXAMPLE)
    parser.add_argument("model", help="reward model: a folder or a Hub id")
    add_revision(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "type": _assignment}
    parser.add_argument(
        "--steer", metavar="LATENT=FACTOR", help="multiply what a latent adds: 0 drops it, 1 restores it", **many
    )
    parser.add_argument("--label", metavar="LATENT=NAME", help="name a latent", **many)
    parser.add_argument("--dataset", help="preference pairs to measure the effect on: a file or a Hub id")
    add_split(parser, "test")
    add_cache_dir(parser)
    parser.set_defaults(run=run)


def _assignment(text: str) -> tuple[int, str]:
    """Parse LATENT=VALUE, for argparse."""
    latent, equals, value = text.partition("=")
    if not latent.isdigit() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must look like 123=VALUE, with the id of a latent")
    return int(latent), value


def _factor(latent: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SparseRMError(f"Latent {latent} has the factor {text!r}, but it must be a number.") from None


def run(args: argparse.Namespace) -> None:
    """Write a copy of a reward model with latents steered or named."""
    factors = {latent: _factor(latent, text) for latent, text in args.steer}
    if not factors and not args.label:
        raise SparseRMError("There is nothing to edit: use --steer LATENT=FACTOR or --label LATENT=NAME.")
    rows = load_preferences(args.dataset, args.split) if args.dataset else None
    effect = edit_model(args.model, args.output_dir, factors, dict(args.label), rows, args.revision, args.cache_dir)
    if not process_state().is_main_process:
        return
    if effect:
        print_effect(effect, f"{args.model} on {args.dataset}")
    unmeasured = "" if effect or not factors else " Its effect was not measured: name pairs with --dataset."
    say(f"Wrote {args.output_dir}.{unmeasured}")
