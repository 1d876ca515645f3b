"""`sparserm export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..integrations import export_stock
from ..runtime import process_state, say
from ..scoring import load_reward_model
from .arguments import add_reward_model

EXAMPLE = "sparserm export my-reward-model --output_dir stock"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    description = "Write a reward model with a linear head on the last token in the form of a stock architecture."
    parser = commands.add_parser("export", help=summary, description=description, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write, new or empty")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Export a reward model."""
    dtype = "saved" if args.dtype == "auto" else args.dtype
    model, tokenizer = load_reward_model(args.model, process_state().device, dtype, args.revision)
    difference = export_stock(model, tokenizer, args.output_dir, args.model)
    say(f"Wrote {args.output_dir}; on probe conversations it differs by {difference:.1e} standard deviations.")
