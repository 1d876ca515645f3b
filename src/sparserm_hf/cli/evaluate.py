"""`sparserm evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from ..conversations import load_preferences
from ..evaluation import BENCHMARKS, evaluate, run_benchmark
from ..runtime import SparseRMError, process_state
from .arguments import add_cache_dir, add_max_length, add_reward_model
from .evaluation_tables import print_benchmark, print_evaluation

EXAMPLE = "sparserm evaluate my-reward-model my-test-pairs.jsonl"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("evaluate", help=summary, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument(
        "dataset", nargs="?", help="preference pairs, or a benchmark's rows: a file or a Hub id (by default its own)"
    )
    parser.add_argument("--benchmark", choices=list(BENCHMARKS), help="score as this benchmark's own code does")
    parser.add_argument("--split", help="split of a Hub dataset (by default test, or the benchmark's)")
    add_max_length(parser)
    add_cache_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Evaluate a reward model on preference pairs, or on a benchmark."""
    how = (args.max_length, args.dtype, args.revision, args.cache_dir)
    if args.benchmark:
        benchmark = BENCHMARKS[args.benchmark]
        rows = load_preferences(args.dataset or benchmark.dataset, args.split or benchmark.split)
        reports = run_benchmark(args.model, args.benchmark, rows, *how)
        if process_state().is_main_process:
            print_benchmark(reports, f"{args.model} on {benchmark.title}")
        return
    if args.dataset is None:
        raise SparseRMError("There is nothing to evaluate on: name preference pairs, or a --benchmark.")
    evaluation = evaluate(args.model, load_preferences(args.dataset, args.split or "test"), *how)
    if process_state().is_main_process:
        print_evaluation(evaluation, f"{args.model} on {args.dataset}")
