"""`sparserm evaluate`: measure the accuracy of a reward model, or of two side by side."""

from __future__ import annotations

import argparse

from ..conversations import load_preferences
from ..evaluation import BENCHMARKS, evaluate, run_benchmark
from ..explanations import compare
from ..runtime import SparseRMError, process_state
from .arguments import add_cache_dir, add_scoring_model
from .comparison_tables import print_comparison
from .evaluation_tables import print_benchmark, print_evaluation

EXAMPLE = "sparserm evaluate my-reward-model my-test-pairs.jsonl"
NEXT = "To see the pairs that it gets wrong: sparserm report {model} --dataset {dataset}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm evaluate`."""
    add_scoring_model(parser).add_argument(
        "--against",
        help="Second reward model, to compare on the same pairs: a folder or a Hub id of a SparseRM, or of another "
        "sequence classifier with one label.",
    )
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
    if args.benchmark and args.against:
        raise SparseRMError("Two reward models are compared on preference pairs: leave out --benchmark or --against.")
    if args.benchmark:
        benchmark = BENCHMARKS[args.benchmark]
        rows = load_preferences(args.dataset or benchmark.dataset, args.split or benchmark.split)
        reports = run_benchmark(args.model, args.benchmark, rows, *options)
        if process_state().is_main_process:
            print_benchmark(reports, f"{args.model} on {benchmark.title}")
        return
    if args.dataset is None:
        raise SparseRMError("There is nothing to evaluate on: name preference pairs, or a --benchmark.")
    rows = load_preferences(args.dataset, args.split or "test")
    if args.against:
        print_comparison(compare(args.model, args.against, rows, *options), args.dataset)
        return
    evaluation = evaluate(args.model, rows, *options)
    if process_state().is_main_process:
        print_evaluation(evaluation, f"{args.model} on {args.dataset}")
