"""`sparserm align`: align a policy in rounds of writing pairs, filtering them with a reward model, and DPO."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from ..align import AlignmentConfig
from ..conversations import iterate_rows, load_preferences
from ..runtime import say
from .arguments import add_settings, given

EXAMPLE = """sparserm align --policy my-policy --reward_model my-reward-model --questions questions.jsonl \\
    --output_dir aligned"""
NEXT = "To load the aligned policy: AutoModelForCausalLM.from_pretrained with {output_dir}/adapter"
DATA_GROUPS = {
    "models": ("policy", "revision", "reward_model", "reward_revision"),
    "data": ("questions", "questions_split", "eval_dataset", "eval_dataset_split", "truthfulqa"),
    "controls": ("controls", "control_reward_model"),
}
SETTING_GROUPS = {
    "pairs": (
        "pairs",
        "task",
        "num_samples",
        "min_margin",
        "num_rounds",
        "questions_per_round",
        "held_out_questions",
        "max_new_tokens",
        "temperature",
        "seed",
    ),
    "training": ("num_train_epochs", "learning_rate", "beta", "lora_rank"),
    "limits": ("max_kl", "max_length_ratio"),
    "computing": ("generation_batch_size", "train_batch_size", "gradient_checkpointing"),
    "output": ("output_dir",),
}


@dataclass(kw_only=True)
class AlignmentData:
    """Models and data of `sparserm align`."""

    policy: str = field(metadata={"help": "Policy, an instruction-tuned model: a Hub id, a folder or a GGUF file."})
    reward_model: str = field(metadata={"help": "Reward model: a folder or a Hub id."})
    questions: str = field(metadata={"help": "Rows with a prompt or a question: a file or a Hub id."})
    questions_split: str = field(default="train", metadata={"help": "Split of the questions."})
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Preference pairs, to measure how often a policy gives the chosen response the higher likelihood."
        },
    )
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of the evaluation pairs."})
    truthfulqa: Path | None = field(
        default=None,
        metadata={"help": "TruthfulQA.csv, to measure MC1 and MC2; no policy is trained on its questions."},
    )
    controls: bool = field(
        default=False, metadata={"help": "Also run without a filter, with a random filter and with the dense control."}
    )
    control_reward_model: str | None = field(
        default=None,
        metadata={"help": "Sequence classifier to run as a filter too, such as a model of TRL's RewardTrainer."},
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the policy on the Hub."})
    reward_revision: str | None = field(default=None, metadata={"help": "Revision of the reward model on the Hub."})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm align`."""
    add_settings(parser, AlignmentData, DATA_GROUPS)
    add_settings(parser, AlignmentConfig, SETTING_GROUPS)


def run(args: argparse.Namespace) -> None:
    """Align, write the report, and print the figures of each round."""
    config = given(AlignmentConfig, args)
    warnings.simplefilter("ignore", FutureWarning)  # transformers warns of old names, which its older versions need
    from ..align import IterativeAligner, load_truthfulqa, write_alignment_report
    from .alignment_tables import print_outcome

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
    report = write_alignment_report(aligner, outcome)
    print_outcome(outcome, f"{Path(args.policy).name}, aligned with {Path(args.reward_model).name}")
    say(f"The report: {report}")
