"""`sparserm sae check`, `sparserm sae find` and `sparserm sae train`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any, Literal

from ..runtime import Console, SparseRMError, say
from ..sae import (
    NOTHING_EXPLAINED,
    SAETrainingConfig,
    SAETrainingData,
    check_sae,
    find_saes,
    model_and_sae,
    train_sae,
)
from .arguments import ModelAndSAE, given, grouped
from .sae_tables import print_check, print_releases, print_saes

CHECK = "sparserm sae check --model google/gemma-2-2b-it --sae my-sae --dataset my-pairs.jsonl"
FIND = "sparserm sae find google/gemma-2-2b-it"
TRAIN = "sparserm sae train --model my-org/my-model --layer 12 --dataset my-texts.jsonl --output_dir my-sae"
CHECK_GROUPS = {
    "data": ("dataset", "dataset_split", "dataset_config", "max_tokens", "max_length"),
    "base model and SAE": ("model", "sae", "preset", "revision", "layer", "dtype"),
}
TRAIN_GROUPS = {
    "data": ("dataset", "dataset_split", "dataset_config", "max_length", "total_tokens"),
    "base model": ("model", "revision", "layer", "dtype"),
    "method": ("architecture", "d_sae", "k", "step_tokens", "learning_rate", "buffer_tokens", "sink_ratio", "seed"),
    "output": ("output_dir", "checkpoint_seconds"),
    "hub": ("push_to_hub", "hub_model_id", "hub_private_repo"),
}


@dataclass(kw_only=True)
class SAECheckData(ModelAndSAE):
    """The arguments of `sparserm sae check`."""

    dataset: str = field(
        metadata={"help": "Texts: a file or a Hub id; rows with text, messages, prompt and completion, or pairs."}
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset; slices such as train[:1000] work."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    layer: int | None = field(default=None, metadata={"help": "Layer to check (by default the SAE's own)."})
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Type the base model runs in, as for `sparserm train`."}
    )
    max_tokens: int = field(default=4096, metadata={"help": "Tokens to measure on; dead latents need many."})
    max_length: int = field(default=256, metadata={"help": "Most tokens of a text."})


def add_to(commands: Any, summary: str) -> None:
    """Add the commands to those of `sparserm`."""
    sae = commands.add_parser("sae", help=summary)
    own = sae.add_subparsers(dest="sae_command", required=True, metavar="COMMAND")

    check = own.add_parser(
        "check",
        dataclass_types=grouped(CHECK_GROUPS, SAECheckData),
        help="whether an SAE fits a base model, a layer and some texts",
        example=CHECK,
    )
    check.set_defaults(run=run_check)

    find = own.add_parser("find", help="the SAEs of a base model in sae-lens' registry", example=FIND)
    find.add_argument("model", help="base model: a Hub id")
    find.add_argument(
        "--layer", type=int, help="list the SAEs of this layer's output, counted from 0 (by default an overview)"
    )
    find.set_defaults(run=run_find)

    train = own.add_parser(
        "train",
        dataclass_types=grouped(TRAIN_GROUPS, SAETrainingData, SAETrainingConfig),
        help="train an SAE on a layer of a base model",
        example=TRAIN,
    )
    train.set_defaults(run=run_train)


def run_check(args: argparse.Namespace) -> int:
    """Check an SAE; returns 1 where it does not fit."""
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


def run_find(args: argparse.Namespace) -> None:
    """List the published SAEs of a base model."""
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


def run_train(args: argparse.Namespace) -> None:
    """Train an SAE."""
    data = given(SAETrainingData, args)
    fit = train_sae(data, given(SAETrainingConfig, args))
    say(
        f"Saved {data.output_dir}: explained variance {fit.explained_variance:.3f}, L0 {fit.l0:.1f}, "
        f"{100 * fit.dead_share:.1f}% dead, on {fit.tokens:,} tokens that were held out."
    )
    if not fit.explained_variance > NOTHING_EXPLAINED:
        Console().print("It explains nothing yet: train it on more tokens.", style="red")
