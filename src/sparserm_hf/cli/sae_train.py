"""`sparserm sae train`: train an SAE."""

from __future__ import annotations

import argparse

from ..runtime import Console, say
from ..sae import NOTHING_EXPLAINED, SAETrainingConfig, SAETrainingData, train_sae
from .arguments import add_settings, given

EXAMPLE = "sparserm sae train --model my-org/my-model --layer 12 --dataset my-texts.jsonl --output_dir my-sae"
NEXT = (
    "To train with it: sparserm train --model {model} --sae {output_dir} "
    "--dataset my-pairs.jsonl --output_dir my-reward-model"
)
DATA_GROUPS = {
    "base model": ("model", "layer", "revision", "dtype"),
    "data": ("dataset", "dataset_split", "dataset_config", "max_length"),
    "output": ("output_dir",),
    "hub": ("push_to_hub", "hub_model_id", "hub_private_repo"),
}
SETTING_GROUPS = {
    "method": ("architecture", "d_sae", "k", "total_tokens", "step_tokens", "learning_rate", "sink_ratio", "seed"),
    "computing": ("buffer_tokens", "checkpoint_seconds"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm sae train`."""
    add_settings(parser, SAETrainingData, DATA_GROUPS)
    add_settings(parser, SAETrainingConfig, SETTING_GROUPS)


def run(args: argparse.Namespace) -> None:
    """Train, save, and print how well the SAE fits held-out texts."""
    data = given(SAETrainingData, args)
    fit = train_sae(data, given(SAETrainingConfig, args))
    say(
        f"Saved {data.output_dir}: explained variance {fit.explained_variance:.3f}, L0 {fit.l0:.1f}, "
        f"{100 * fit.dead_share:.1f}% dead, on {fit.tokens:,} tokens that were held out."
    )
    if not fit.explained_variance > NOTHING_EXPLAINED:
        Console().print("It explains nothing yet: train it on more tokens.", style="red")
