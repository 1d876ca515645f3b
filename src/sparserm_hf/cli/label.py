"""`sparserm label`: label pairs of responses on a page, and train a reward model on the labels."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from ..conversations import iterate_rows
from ..labelling import LabellingConfig
from ..sae import model_and_sae
from .arguments import ModelAndSAE, add_settings, given

EXAMPLE = (
    """sparserm label questions.jsonl --policy google/gemma-2-2b-it --preset gemma-2-2b-it --output_dir my-labels"""
)
NEXT = "To look inside a model that the page has trained: sparserm report {output_dir}/reward-model"
DATA_GROUPS = {
    "base model": ("model", "sae", "preset", "revision"),
    "responses": ("questions_split", "policy"),
}
SETTING_GROUPS = {
    "writing": ("num_responses", "max_new_tokens", "temperature"),
    "method": ("layer", "max_length", "check_sae", "seed"),
    "computing": ("dtype", "cache_dir"),
    "output": ("output_dir", "port"),
}


@dataclass(kw_only=True)
class LabellingData(ModelAndSAE):
    """Base model, SAE and policy of `sparserm label`."""

    questions_split: str = field(default="train", metadata={"help": "Split of the questions."})
    policy: str | None = field(
        default=None,
        metadata={
            "help": "Instruction-tuned model that writes the responses: a Hub id, a folder or a GGUF file. Without "
            "it, the rows must have `responses`."
        },
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm label`."""
    parser.add_argument(
        "questions", help="Rows with a `prompt` or a `question`, and `responses` without a policy: a file or a Hub id."
    )
    parser.usage = "%(prog)s [options] questions"
    add_settings(parser, LabellingData, DATA_GROUPS)
    add_settings(parser, LabellingConfig, SETTING_GROUPS)


def run(args: argparse.Namespace) -> None:
    """Serve the page until a signal ends it."""
    from ..labelling import label  # needs the extra `serve`, which `--help` does not

    model, sae = model_and_sae(args.preset, args.model, args.sae)
    questions = iterate_rows(args.questions, args.questions_split)
    label(questions, given(LabellingConfig, args), model, sae, args.policy, args.revision)
