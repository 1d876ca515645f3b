"""`sparserm score`: score rows into JSON Lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm.auto import tqdm

from ..conversations import iterate_rows
from ..runtime import SparseRMError, check_output_file, escaped_json, process_state, say
from ..scoring import json_line, load_reward_model, row_errors, score_file, score_rows
from .arguments import add_scoring_model
from .output import tell_errors

EXAMPLE = "sparserm score my-reward-model answers.jsonl --output scores.jsonl"
NEXT = "To see why responses got their rewards: sparserm explain {model} {input}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm score`."""
    add_scoring_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "input",
        help="Rows with text, messages, prompt and completion, or chosen and rejected: a file, or - for stdin.",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, help="File to write; an interrupted run is continued. By default, standard output."
    )
    output.add_argument(
        "--probabilities", action="store_true", help="Add the probability that the chosen response is preferred."
    )
    computing = parser.add_argument_group("computing")
    computing.add_argument(
        "--engine",
        default="local",
        choices=["local", "ray"],
        help="ray: score a folder of Parquet files into another, on the cluster of RAY_ADDRESS or on this machine "
        "(default: %(default)s).",
    )
    computing.add_argument(
        "--workers", type=int, help="Ray processes that hold the model; by default, one per GPU, or one per four CPUs."
    )


def run(args: argparse.Namespace) -> int:
    """Score; returns 2 if some rows could not be scored."""
    check_output_file(args.output)
    if args.engine == "ray":
        return _score_on_ray(args)
    state = process_state()
    if state.num_processes > 1 and (args.output is None or args.input == "-"):
        raise SparseRMError("Several processes score a file into a file: name an input file and --output.")
    if args.output is None:
        return _score_to_stdout(args)
    scored = score_file(
        args.model, args.input, args.output, args.max_length, args.dtype, args.revision, args.probabilities
    )
    if state.is_main_process:
        _print_written(args.output, scored.kept)
    return tell_errors(scored.errors)


def _score_to_stdout(args: argparse.Namespace) -> int:
    rows = iterate_rows(args.input)
    model, tokenizer = load_reward_model(args.model, dtype=args.dtype, revision=args.revision)
    source = "" if args.input == "-" else args.input
    errors = []
    rows = tqdm(rows, desc="Scoring", unit="row", delay=2)
    for row in score_rows(model, tokenizer, rows, args.max_length, args.probabilities, source):
        line = json_line(row)
        errors += row_errors(line.encode())
        sys.stdout.write(escaped_json(line))
        sys.stdout.flush()
    return tell_errors(errors)


def _score_on_ray(args: argparse.Namespace) -> int:
    from ..integrations import score_parquet

    if args.output is None:
        raise SparseRMError("The Ray engine writes a folder of Parquet files: name it with --output.")
    scored = score_parquet(
        args.model,
        Path(args.input),
        args.output,
        args.max_length,
        args.dtype,
        args.revision,
        args.workers,
        args.probabilities,
    )
    _print_written(args.output, scored.kept)
    return tell_errors(scored.errors)


def _print_written(output: Path, kept: int) -> None:
    say(f"Wrote {output}" + (f"; {kept} rows were there from a run before." if kept else "."))
