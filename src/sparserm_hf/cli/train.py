"""`sparserm train`: train a reward model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from ..conversations import load_preferences
from ..runtime import process_state, say
from ..sae import model_and_sae
from ..training import SparseRMTrainer, SparseRMTrainingConfig, load_objectives
from .arguments import ModelAndSAE, add_settings, given
from .evaluation_tables import print_adapter, print_evaluation

EXAMPLE = """sparserm train --model google/gemma-2-2b-it --dataset my-pairs.jsonl --output_dir my-reward-model"""
NEXT = "To look inside the model: sparserm report {output_dir} --dataset {dataset}"
DATA_GROUPS = {
    "base model": ("model", "sae", "preset", "revision"),
    "data": ("dataset", "dataset_split", "eval_dataset", "eval_dataset_split"),
}
SETTING_GROUPS = {
    "method": (
        "layer",
        "pooling",
        "representation_norm",
        "k",
        "exclude_latents",
        "directions",
        "head_type",
        "loss",
        "ensemble",
        "gamma",
        "debias",
        "adapter_rank",
        "max_length",
        "seed",
    ),
    "checks and controls": ("check_sae", "controls"),
    "computing": ("dtype", "quantization", "cache_dir"),
    "output": ("output_dir", "slim", "report_to"),
    "hub": ("push_to_hub", "hub_model_id", "hub_private_repo"),
}


@dataclass(kw_only=True)
class TrainingData(ModelAndSAE):
    """Base model, SAE and preference pairs of `sparserm train`."""

    dataset: list[str] = field(
        metadata={
            "help": "Preference pairs: a .json, .jsonl, .jsonl.gz, .csv or .parquet file, or a Hub id. Several "
            "values in its column `objective`, or this option several times, train several objectives together."
        }
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset; slices such as train[:1000] work."}
    )
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Preference pairs to evaluate the reward model and its controls on."}
    )
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of the evaluation pairs."})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm train`."""
    add_settings(parser, TrainingData, DATA_GROUPS)
    add_settings(parser, SparseRMTrainingConfig, SETTING_GROUPS)


def run(args: argparse.Namespace) -> None:
    """Train, save, and print the evaluation."""
    config = given(SparseRMTrainingConfig, args)
    model, sae = model_and_sae(args.preset, args.model, args.sae)
    evaluation_pairs = load_preferences(args.eval_dataset, args.eval_dataset_split) if args.eval_dataset else None
    trainer = SparseRMTrainer(
        model,
        sae,
        config,
        load_objectives(args.dataset, args.dataset_split),
        evaluation_pairs,
        revision=args.revision,
    )
    metrics = trainer.train()
    trainer.save_model()
    if process_state().is_main_process:
        if trainer.evaluation is not None:
            print_evaluation(trainer.evaluation, f"{config.output_dir} on {args.eval_dataset}")
        print_adapter(metrics)
        stages = (
            f"{metrics['representation_seconds']:.1f} s for representations, {metrics['fit_seconds']:.1f} s to fit"
        )
        if config.adapter_rank:
            stages += f", {metrics['adapter_seconds']:.1f} s for the adapter"
        say(f"Saved {config.output_dir}: {metrics['trainable_parameters']:,} trained parameters; {stages}.")
