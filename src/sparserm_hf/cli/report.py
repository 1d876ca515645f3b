"""`sparserm report`: write a report on a reward model into one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..conversations import load_preferences
from ..explanations import write_report
from ..runtime import process_state, say
from .arguments import add_cache_dir, add_scoring_model

EXAMPLE = "sparserm report my-reward-model --dataset my-test-pairs.jsonl"
NEXT = "To switch a latent off: sparserm edit {model} --steer LATENT=0 --output_dir corrected"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm report`."""
    add_scoring_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="Preference pairs to evaluate on and to explain: a file or a Hub id.")
    data.add_argument("--split", default="test", help="Split of the dataset (default: %(default)s).")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, help="HTML file to write; by default, the model's name followed by -report.html."
    )
    output.add_argument("--examples", type=int, default=24, help="Pairs to show (default: %(default)s).")
    add_cache_dir(parser.add_argument_group("computing"))


def run(args: argparse.Namespace) -> None:
    """Write the report."""
    pairs = load_preferences(args.dataset, args.split) if args.dataset else None
    options = (args.max_length, args.dtype, args.revision, args.cache_dir)
    output = write_report(args.model, args.output, pairs, args.examples, *options)
    if process_state().is_main_process:
        say(f"Wrote {output}: open it in a browser.")
