"""`sparserm explain`: explain rewards by latent and by token."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..conversations import iterate_rows
from ..explanations import explain_rows
from ..runtime import SparseRMError, check_output_file, process_state, replacing_file
from ..scoring import json_line, load_reward_model
from .arguments import add_scoring_model
from .explanation_tables import print_explanation, print_legend
from .output import tell_errors

EXAMPLE = "sparserm explain my-reward-model answers.jsonl"
NEXT = "To switch a latent off: sparserm edit {model} --steer LATENT=0 --output_dir corrected"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm explain`."""
    add_scoring_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument("input", help="Rows as `sparserm score` takes them: a file, or - for stdin.")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, help="JSON Lines file to write the whole explanations to; by default, print tables."
    )
    output.add_argument("--top", type=int, default=10, help="Latents in a table (default: %(default)s).")


def run(args: argparse.Namespace) -> int:
    """Explain; returns 2 if some rows could not be explained."""
    if process_state().num_processes > 1:
        raise SparseRMError("sparserm explain runs in one process: start it without a launcher.")
    check_output_file(args.output)
    model, tokenizer = load_reward_model(args.model, dtype=args.dtype, revision=args.revision)
    rows: Any = tqdm(iterate_rows(args.input), desc="Explaining", unit="row", delay=2, disable=args.output is None)
    errors, shown = [], False
    with ExitStack() as stack:
        file = None
        if args.output:
            file = stack.enter_context(stack.enter_context(replacing_file(args.output)).open("w", encoding="utf-8"))
        for number, explained in enumerate(explain_rows(model, tokenizer, rows, args.max_length, args.input), 1):
            if explained.error:
                errors.append(explained.error)
            if file:
                file.write(json_line(explained.as_json()))
            elif not explained.error:
                print_explanation(explained.explanations, model.config, f"Row {number}", args.top)
                shown = True
    if shown:
        print_legend()
    return tell_errors(errors)
