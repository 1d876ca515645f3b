"""`sparserm latents`: show the selected latents."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..conversations import load_preferences
from ..explanations import Describer, report_latents
from ..runtime import SparseRMError, check_output_file, process_state, replacing_file
from ..scoring import json_line
from .arguments import add_cache_dir, add_scoring_model
from .explanation_tables import print_latents

EXAMPLE = "sparserm latents my-reward-model my-pairs.jsonl"
NEXT = "To switch a latent off: sparserm edit {model} --steer LATENT=0 --output_dir corrected"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm latents`."""
    add_scoring_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument("dataset", help="Preference pairs, such as those of training: a file or a Hub id.")
    data.add_argument(
        "--split",
        default="train",
        help="Split of the dataset; slices such as train[:1000] work (default: %(default)s).",
    )
    descriptions = parser.add_argument_group("descriptions")
    descriptions.add_argument(
        "--describe_with",
        metavar="URL",
        help="OpenAI-compatible endpoint of a language model that describes the latents; each description is tested.",
    )
    descriptions.add_argument("--describe_model", metavar="NAME", help="Name of the language model at that endpoint.")
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, help="JSON Lines file to write, one latent a line; by default, print.")
    output.add_argument(
        "--top", type=int, default=10, help="Latents to show, those that move rewards most (default: %(default)s)."
    )
    output.add_argument(
        "--examples", type=int, default=3, help="Strongest and weakest passages of a latent (default: %(default)s)."
    )
    add_cache_dir(parser.add_argument_group("computing"))


def run(args: argparse.Namespace) -> None:
    """Print the latents, or write them into a file."""
    check_output_file(args.output)
    if bool(args.describe_with) != bool(args.describe_model):
        raise SparseRMError("--describe_with URL and --describe_model NAME belong together: name both, or neither.")
    describer = Describer.at(args.describe_with, args.describe_model) if args.describe_with else None
    pairs = load_preferences(args.dataset, args.split)
    options = (args.max_length, args.dtype, args.revision, args.cache_dir)
    reports = report_latents(args.model, pairs, args.top, args.examples, describer, *options)
    if not process_state().is_main_process:
        return
    if args.output:
        with replacing_file(args.output) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json_line(asdict(report)) for report in reports.latents)
    else:
        print_latents(reports.latents, f"{args.model} on {args.dataset}, {reports.pairs} pairs")
