"""`sparserm align`."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..align import AlignmentConfig
from ..conversations import iterate_rows, load_preferences
from ..runtime import say, without_extra
from .arguments import given, grouped

EXAMPLE = (
    "sparserm align --policy my-policy --reward_model my-reward-model --questions questions.jsonl --output_dir aligned"
)
GROUPS = {
    "data": (
        "policy",
        "reward_model",
        "questions",
        "questions_split",
        "eval_dataset",
        "eval_dataset_split",
        "truthfulqa",
        "revision",
        "reward_revision",
    ),
    "pairs": ("pairs", "task", "num_samples", "min_margin", "questions_per_round", "held_out_questions"),
    "generation": ("max_new_tokens", "temperature", "generation_batch_size"),
    "training": (
        "num_rounds",
        "num_train_epochs",
        "learning_rate",
        "beta",
        "train_batch_size",
        "gradient_checkpointing",
        "lora_rank",
        "seed",
    ),
    "stopping": ("max_kl", "max_length_ratio"),
    "controls": ("controls", "control_reward_model"),
    "output": ("output_dir",),
}


@dataclass(kw_only=True)
class AlignmentData:
    """The arguments of `sparserm align` beside its settings."""

    policy: str = field(metadata={"help": "Instruction-tuned model: a Hub id, a folder, a GGUF file."})
    reward_model: str = field(metadata={"help": "SparseRM checkpoint: a folder or a Hub id."})
    questions: str = field(metadata={"help": "Rows with a `prompt` or a `question`: a file or a Hub id."})
    questions_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Preference pairs: how often is the chosen response the likelier one?"}
    )
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of a Hub dataset."})
    truthfulqa: Path | None = field(
        default=None, metadata={"help": "TruthfulQA.csv, for MC1 and MC2; its questions are not trained on."}
    )
    controls: bool = field(
        default=False, metadata={"help": "Also run without a filter, with a random filter and with the dense control."}
    )
    control_reward_model: str | None = field(
        default=None, metadata={"help": "Sequence classifier that is also run as a filter."}
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the policy on the Hub."})
    reward_revision: str | None = field(default=None, metadata={"help": "Revision of the reward model on the Hub."})


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    options = grouped(GROUPS, AlignmentData, AlignmentConfig)
    parser = commands.add_parser("align", dataclass_types=options, help=summary, example=EXAMPLE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Align a policy, and report on it."""
    config = given(AlignmentConfig, args)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, for names that older ones know alone
    try:
        from ..align import IterativeAligner, load_truthfulqa, print_outcome, write_report
    except ModuleNotFoundError as error:
        raise without_extra("Alignment", error, "align") from None
    aligner = IterativeAligner(
        args.policy,
        args.reward_model,
        config,
        iterate_rows(args.questions, args.questions_split),
        load_preferences(args.eval_dataset, args.eval_dataset_split) if args.eval_dataset else None,
        load_truthfulqa(args.truthfulqa) if args.truthfulqa else None,
        args.controls,
        args.control_reward_model,
        args.revision,
        args.reward_revision,
    )
    outcome = aligner.run()
    report = write_report(aligner, outcome)
    print_outcome(outcome, f"{Path(args.policy).name}, aligned with {Path(args.reward_model).name}")
    say(f"The report: {report}")
