"""`sparserm export`: write a reward model as a plain sequence classifier of transformers."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..integrations import export_stock
from ..runtime import say
from .arguments import add_dtype, add_reward_model

EXAMPLE = "sparserm export my-reward-model --output_dir stock"
NEXT = "To load it: AutoModelForSequenceClassification.from_pretrained with {output_dir}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm export`."""
    parser.description = f"{parser.description} The head must be linear and the pooling last."
    add_dtype(add_reward_model(parser))
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="Folder to write, new or empty.")


def run(args: argparse.Namespace) -> None:
    """Export, and print how far the rewards of probe conversations differ."""
    dtype = "saved" if args.dtype == "auto" else args.dtype
    difference = export_stock(args.model, args.output_dir, dtype, args.revision)
    say(f"Wrote {args.output_dir}; on probe conversations it differs by {difference:.1e} standard deviations.")
