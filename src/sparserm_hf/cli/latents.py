"""`sparserm latents`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..conversations import load_preferences
from ..explanations import Describer, report_latents
from ..runtime import SparseRMError, check_output_file, process_state, replacing_file
from ..scoring import json_line
from .arguments import add_cache_dir, add_max_length, add_reward_model, add_split
from .explanation_tables import print_latents

EXAMPLE = "sparserm latents my-reward-model my-pairs.jsonl"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("latents", help=summary, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument("dataset", help="preference pairs, such as the training pairs: a file or a Hub id")
    add_split(parser, "train")
    parser.add_argument("--top", type=int, default=10, help="latents to show, those that move the reward most")
    parser.add_argument("--examples", type=int, default=3, help="passages of each latent, strongest and weakest")
    parser.add_argument("--output", type=Path, help="JSON Lines with a latent on each line (by default a table)")
    add_max_length(parser)
    add_cache_dir(parser)
    describing = parser.add_argument_group("descriptions", "A language model describes the latents, and is tested.")
    describing.add_argument("--describe_with", metavar="URL", help="OpenAI-compatible endpoint")
    describing.add_argument("--describe_model", metavar="NAME", help="name of the language model there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Show the selected latents of a reward model."""
    check_output_file(args.output)
    if bool(args.describe_with) != bool(args.describe_model):
        raise SparseRMError("--describe_with URL and --describe_model NAME belong together: name both, or neither.")
    describer = Describer.at(args.describe_with, args.describe_model) if args.describe_with else None
    rows = load_preferences(args.dataset, args.split)
    how = (args.max_length, args.dtype, args.revision, args.cache_dir)
    reports = report_latents(args.model, rows, args.top, args.examples, describer, *how)
    if not process_state().is_main_process:
        return
    if args.output:
        with replacing_file(args.output) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json_line(asdict(report)) for report in reports.latents)
    else:
        print_latents(reports.latents, f"{args.model} on {args.dataset}, {reports.pairs} pairs")
