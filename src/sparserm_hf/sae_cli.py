"""The commands `sparserm sae ...`: parse, call, print."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class SAECheckData:
    """What `sparserm sae check` is given."""

    dataset: str = field(
        metadata={"help": "Texts: rows with text, messages, prompt and completion, or chosen and rejected."}
    )
    model: str | None = field(default=None, metadata={"help": "Base model: a Hub id, a folder, or a GGUF file."})
    sae: str | None = field(
        default=None,
        metadata={"help": "SAE: a folder, release/id of sae-lens, or a Hub repo; by default the base's own."},
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset; train[:1000] works too."})
    layer: int | None = field(default=None, metadata={"help": "Layer to check; by default where the SAE reads."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the base model."})
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Type the base model runs in, as for `sparserm train`."}
    )


def add_sae_commands(commands: argparse._SubParsersAction) -> None:
    """Hang `sparserm sae` and its commands on the subparsers of `sparserm`."""
    sae = commands.add_parser("sae", dataclass_types=[], help="check a sparse autoencoder")
    sae_commands = sae.add_subparsers(dest="sae_command", required=True)

    check = sae_commands.add_parser(
        "check", dataclass_types=[SAECheckData], help="whether an SAE fits a base model, a layer and some texts"
    )
    check.set_defaults(run=check_command)


def check_command(args: argparse.Namespace) -> int:
    """`sparserm sae check`; returns 1 where the SAE does not fit."""
    raise NotImplementedError
