"""`sparserm combine`: combine reward models into one that scores several objectives in one pass."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..conversations import load_preferences
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import Console, process_state, say
from ..training import combine
from .arguments import add_cache_dir
from .evaluation_tables import print_evaluation

EXAMPLE = "sparserm combine my-reward-model another-reward-model --weights 1 2 --output_dir my-combined-reward-model"
NEXT = "To see what each objective adds: sparserm explain {output_dir} answers.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm combine`."""
    parser.add_argument(
        "models",
        nargs="+",
        help="Reward models with linear heads that share base model, layer, SAE and pooling: folders or Hub ids. Each "
        "objective is named after the last part of its model's name.",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        help="Preference pairs that are labelled by overall preference, to measure on: a file or a Hub id.",
    )
    data.add_argument("--split", default="test", help="Split of the dataset (default: %(default)s).")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--weights",
        nargs="+",
        type=float,
        help="Weight of each model's standardised reward; by default fitted to the pairs, or 1 without pairs.",
    )
    method.add_argument(
        "--gate",
        action="store_true",
        help="Also fit a gate to the pairs, which weighs the objectives by the prompt. The gate is left out unless it "
        "helps on held-out pairs.",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="Folder to write.")
    output.add_argument("--slim", action="store_true", help="Leave out base model and SAE; see `sparserm train`.")
    add_cache_dir(parser.add_argument_group("computing"))


def run(args: argparse.Namespace) -> None:
    """Combine, and print the weights and the accuracies."""
    pairs = load_preferences(args.dataset, args.split) if args.dataset else None
    evaluation = combine(args.models, args.output_dir, args.weights, pairs, args.slim, args.cache_dir, args.gate)
    if not process_state().is_main_process:
        return
    if evaluation:
        print_evaluation(evaluation, f"{args.output_dir} on {args.dataset}")
    table = Table(title=f"Objectives of {escape(str(args.output_dir))}")
    table.add_column("", overflow="fold")
    table.add_column("weight", justify="right")
    for objective in SparseRMConfig.from_pretrained(args.output_dir).objectives:
        table.add_row(escape(objective["name"]), f"{objective['weight']:.3f}")
    Console().print(table)
    say(f"Wrote {args.output_dir}.")
