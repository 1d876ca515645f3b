"""`sparserm report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..conversations import load_preferences
from ..explanations import write_report
from ..runtime import process_state, say
from .arguments import add_cache_dir, add_max_length, add_reward_model, add_split

EXAMPLE = "sparserm report my-reward-model --dataset my-test-pairs.jsonl"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("report", help=summary, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument("--dataset", help="preference pairs to evaluate on and to show: a file or a Hub id")
    add_split(parser, "test")
    parser.add_argument("--examples", type=int, default=24, help="pairs to show")
    parser.add_argument("--output", type=Path, help="file to write (by default the model's name with -report.html)")
    add_max_length(parser)
    add_cache_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the HTML report of a reward model."""
    rows = load_preferences(args.dataset, args.split) if args.dataset else None
    how = (args.max_length, args.dtype, args.revision, args.cache_dir)
    output = write_report(args.model, args.output, rows, args.examples, *how)
    if process_state().is_main_process:
        say(f"Wrote {output}.")
