"""`sparserm sae find`: list the SAEs of a base model in sae-lens' registry."""

from __future__ import annotations

import argparse

from ..runtime import SparseRMError
from ..sae import find_saes
from .sae_tables import print_releases, print_saes

EXAMPLE = "sparserm sae find google/gemma-2-2b-it --layer 12"
NEXT = (
    "To train with one: sparserm train --model {model} --sae NAME "
    "--dataset my-pairs.jsonl --output_dir my-reward-model"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm sae find`."""
    parser.add_argument("model", help="Base model: a Hub id.")
    parser.add_argument(
        "--layer",
        type=int,
        help="List each SAE on the output of this layer, counted from 0; by default, list the releases.",
    )


def run(args: argparse.Namespace) -> None:
    """Print the SAEs."""
    saes = find_saes(args.model)
    if not saes:
        raise SparseRMError(
            f"sae-lens' registry lists no SAE on the residual stream of {args.model!r}: train one with "
            "`sparserm sae train`."
        )
    if args.layer is None:
        print_releases(saes, args.model)
        return
    saes = [sae for sae in saes if sae.layer == args.layer]
    if not saes:
        raise SparseRMError(f"sae-lens' registry lists no SAE at layer {args.layer} of {args.model!r}.")
    print_saes(saes, args.model)
