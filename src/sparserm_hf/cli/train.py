"""`sparserm train`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from ..conversations import load_preferences
from ..runtime import process_state, say
from ..sae import model_and_sae
from ..training import SparseRMTrainer, SparseRMTrainingConfig
from .arguments import ModelAndSAE, given, grouped
from .evaluation_tables import print_evaluation

EXAMPLE = (
    "sparserm train --preset gemma-2-2b-it --dataset my-pairs.jsonl --eval_dataset my-test-pairs.jsonl "
    "--output_dir my-reward-model"
)
GROUPS = {
    "data": ("dataset", "dataset_split", "eval_dataset", "eval_dataset_split", "max_length"),
    "base model and SAE": ("model", "sae", "preset", "revision", "layer", "dtype", "quantization", "check_sae"),
    "method": (
        "pooling",
        "representation_norm",
        "directions",
        "k",
        "head_type",
        "head_hidden_size",
        "loss",
        "gamma",
        "debias",
        "seed",
    ),
    "output": ("output_dir", "slim", "controls", "cache_dir", "report_to"),
    "hub": ("push_to_hub", "hub_model_id", "hub_private_repo"),
}


@dataclass(kw_only=True)
class TrainData(ModelAndSAE):
    """The arguments of `sparserm train` beside its settings."""

    dataset: str = field(metadata={"help": "Preference pairs: a .json, .jsonl(.gz), .csv, .parquet file or a Hub id."})
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset; slices such as train[:1000] work."}
    )
    eval_dataset: str | None = field(default=None, metadata={"help": "Held-out pairs to evaluate on."})
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of the evaluation pairs on the Hub."})


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    options = grouped(GROUPS, TrainData, SparseRMTrainingConfig)
    parser = commands.add_parser("train", dataclass_types=options, help=summary, example=EXAMPLE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Train, evaluate and save a reward model."""
    config = given(SparseRMTrainingConfig, args)
    model, sae = model_and_sae(args.preset, args.model, args.sae)
    held_out = load_preferences(args.eval_dataset, args.eval_dataset_split) if args.eval_dataset else None
    pairs = load_preferences(args.dataset, args.dataset_split)
    trainer = SparseRMTrainer(model, sae, config, pairs, held_out, revision=args.revision)
    metrics = trainer.train()
    trainer.save_model()
    if not process_state().is_main_process:
        return
    if trainer.evaluation is not None:
        print_evaluation(trainer.evaluation, f"{config.output_dir} on {args.eval_dataset}")
    stages = f"{metrics['representation_seconds']:.1f} s for representations, {metrics['fit_seconds']:.1f} s to fit"
    say(f"Saved {config.output_dir}: {metrics['trainable_parameters']:,} trained parameters; {stages}.")
