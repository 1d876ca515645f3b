"""`sparserm sae check`: check that an SAE fits a base model, a layer and texts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Literal

from ..sae import check_sae, model_and_sae
from .arguments import ModelAndSAE, add_settings
from .sae_tables import print_check

EXAMPLE = "sparserm sae check --model google/gemma-2-2b-it --sae path/or/repo --dataset my-pairs.jsonl"
NEXT = (
    "To train with it: sparserm train --model {model} --sae {sae} "
    "--dataset my-pairs.jsonl --output_dir my-reward-model"
)
GROUPS = {
    "base model": ("model", "sae", "preset", "revision", "layer", "dtype"),
    "data": ("dataset", "dataset_split", "dataset_config", "max_tokens", "max_length"),
}


@dataclass(kw_only=True)
class SAECheckData(ModelAndSAE):
    """Base model, SAE and texts of `sparserm sae check`."""

    dataset: str = field(
        metadata={
            "help": "Rows with text, messages, prompt and completion, or chosen and rejected: a file or a Hub id."
        }
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset; slices such as train[:1000] work."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset on the Hub."})
    layer: int | None = field(
        default=None,
        metadata={"help": "Number of decoder layers before the residual stream to check; by default, the SAE's own."},
    )
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Data type to run the base model in, as for `sparserm train`."}
    )
    max_tokens: int = field(default=4096, metadata={"help": "Number of tokens to check on; dead latents need many."})
    max_length: int = field(default=256, metadata={"help": "Maximum number of tokens of a text."})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm sae check`."""
    add_settings(parser, SAECheckData, GROUPS)


def run(args: argparse.Namespace) -> int:
    """Print the check; returns 1 if the SAE does not fit."""
    model, sae = model_and_sae(args.preset, args.model, args.sae)
    check = check_sae(
        model,
        sae,
        args.dataset,
        args.dataset_split,
        args.dataset_config,
        args.layer,
        args.dtype,
        args.max_tokens,
        args.max_length,
        args.revision,
    )
    print_check(check)
    return 0 if check.verdict.fits else 1
