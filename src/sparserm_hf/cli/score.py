"""`sparserm score`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..conversations import iterate_rows
from ..runtime import SparseRMError, check_output_file, escaped_json, process_state, say, without_extra
from ..scoring import json_line, load_reward_model, row_errors, score_rows, score_to_file
from .arguments import add_max_length, add_reward_model
from .output import tell_errors

EXAMPLE = "sparserm score my-reward-model answers.jsonl --output scores.jsonl"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("score", help=summary, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument(
        "input", help="rows with text, messages, prompt and completion, or chosen and rejected; - for stdin"
    )
    parser.add_argument(
        "--output", type=Path, help="file to write (by default stdout); a killed run goes on where it stopped"
    )
    parser.add_argument("--probabilities", action="store_true", help="add the probability that chosen is preferred")
    add_max_length(parser)
    ray = parser.add_argument_group("Ray", "Score Parquet files into a folder of Parquet files.")
    ray.add_argument("--engine", default="local", choices=["local", "ray"], help="ray: on the cluster of RAY_ADDRESS")
    ray.add_argument("--workers", type=int, help="processes that hold the model (by default 1 a GPU, or 1 per 4 CPUs)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score rows; returns 2 where rows could not be scored."""
    check_output_file(args.output)
    if args.engine == "ray":
        return score_on_ray(args)
    state = process_state()
    if state.num_processes > 1 and (args.output is None or args.input == "-"):
        raise SparseRMError("Several processes score a file into a file: name an input file and --output.")
    rows: Any = iterate_rows(args.input)
    model, tokenizer = load_reward_model(args.model, state.device, args.dtype, args.revision)
    source = "" if args.input == "-" else args.input
    rows = tqdm(rows, desc="Scoring", unit="row", delay=2, disable=not state.is_main_process)
    if args.output is None:
        errors = []
        for row in score_rows(model, tokenizer, rows, args.max_length, args.probabilities, source):
            line = json_line(row)
            errors += row_errors(line.encode())
            sys.stdout.write(escaped_json(line))
            sys.stdout.flush()
        return tell_errors(errors)
    scored = score_to_file(model, tokenizer, rows, args.output, args.max_length, args.probabilities, source)
    if state.is_main_process:
        tell_written(args.output, scored.kept)
    return tell_errors(scored.errors)


def score_on_ray(args: argparse.Namespace) -> int:
    """Score Parquet files on Ray; returns 2 where rows could not be scored."""
    try:
        from ..integrations import score_parquet
    except ModuleNotFoundError as error:
        raise without_extra("The Ray engine", error, "ray") from None
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
    tell_written(args.output, scored.kept)
    return tell_errors(scored.errors)


def tell_written(output: Path, before: int) -> None:
    """Print where the scores are, and how many rows an earlier run had scored."""
    say(f"Wrote {output}" + (f"; {before} rows were there from a run before." if before else "."))
