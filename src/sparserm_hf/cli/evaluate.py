"""`sparserm evaluate`: measure the accuracy of a reward model."""

from __future__ import annotations

import argparse

from ..conversations import load_preferences
from ..evaluation import BENCHMARKS, evaluate, run_benchmark
from ..runtime import SparseRMError, process_state
from .arguments import add_cache_dir, add_scoring_model
from .evaluation_tables import print_benchmark, print_evaluation

EXAMPLE = "sparserm evaluate my-reward-model my-test-pairs.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm evaluate`."""
    add_scoring_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "dataset",
        nargs="?",
        help="Preference pairs, or rows of the benchmark: a file or a Hub id; by default, the benchmark's own.",
    )
    data.add_argument("--benchmark", choices=list(BENCHMARKS), help="Benchmark whose scores to compute.")
    data.add_argument("--split", help="Split of the dataset; by default, test, or the benchmark's own.")
    add_cache_dir(parser.add_argument_group("computing"))


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the tables."""
    options = (args.max_length, args.dtype, args.revision, args.cache_dir)
    if args.benchmark:
        benchmark = BENCHMARKS[args.benchmark]
        rows = load_preferences(args.dataset or benchmark.dataset, args.split or benchmark.split)
        reports = run_benchmark(args.model, args.benchmark, rows, *options)
        if process_state().is_main_process:
            print_benchmark(reports, f"{args.model} on {benchmark.title}")
        return
    if args.dataset is None:
        raise SparseRMError("There is nothing to evaluate on: name preference pairs, or a --benchmark.")
    evaluation = evaluate(args.model, load_preferences(args.dataset, args.split or "test"), *options)
    if process_state().is_main_process:
        print_evaluation(evaluation, f"{args.model} on {args.dataset}")
