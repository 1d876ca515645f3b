"""The settings of an alignment run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..runtime import SparseRMError, option

PAIRS = ("contrast", "best-of-n")
TASK = "truthfulness"


@dataclass
class AlignmentConfig:
    """Settings of an alignment run. The `help` of each field describes it.

    Example:
        >>> AlignmentConfig("aligned", num_rounds=2).pairs
        'contrast'
    """

    output_dir: str = field(metadata={"help": "Folder of the run; an interrupted run in it is continued."})
    pairs: Literal["contrast", "best-of-n"] = option(
        "contrast",
        "How pairs are made. contrast: the policy is asked for the preferred behaviour and for its opposite, and "
        "pairs whose preferred response has the lower reward are dropped. best-of-n: of n responses, the one with "
        "the highest reward is paired with the one with the lowest.",
    )
    task: str = option(
        TASK, "Behaviour for contrast: truthfulness, harmlessness, or a YAML file with `preferred` and `opposite`."
    )
    num_samples: int = option(4, "Number of responses to each question, for best-of-n.")
    min_margin: float = option(0.0, "Minimum reward difference of a pair; pairs with a smaller one are dropped.")
    num_rounds: int = option(5, "Number of rounds; each starts from the policy of the round before.")
    questions_per_round: int = option(2000, "Number of questions in a round; if there are too few, they recur.")
    held_out_questions: int = option(64, "Number of held-out questions, on which policies are compared.")
    max_new_tokens: int = option(128, "Maximum number of tokens of a response.")
    temperature: float = option(0.7, "Sampling temperature; a small policy writes nonsense at 1.")
    generation_batch_size: int = option(32, "Number of responses that are written at a time.")
    num_train_epochs: float = option(3.0, "Epochs of DPO on the kept pairs of a round.")
    learning_rate: float = option(1e-4, "Learning rate of DPO; LoRA needs ten times that of full fine-tuning.")
    beta: float = option(
        0.1, "Beta of DPO: a larger beta keeps the policy closer to the policy at the start of the round."
    )
    train_batch_size: int = option(8, "Number of pairs in a training step.")
    gradient_checkpointing: bool = option(False, "Save memory at the price of more computation.")
    lora_rank: int = option(16, "Rank of the LoRA adapter, on all linear layers.")
    max_kl: float = option(
        100.0, "Stop if the policy's mean KL divergence from the first policy is above this number of nats per answer."
    )
    max_length_ratio: float = option(
        2.0,
        "Stop if responses become longer or shorter than the first policy's by more than this factor. Responses are "
        "cut at max_new_tokens, so look at the share that is cut too.",
    )
    seed: int = option(42, "Random seed.")

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SparseRMError: A setting is out of range.
        """
        if self.pairs not in PAIRS:
            raise SparseRMError(f"pairs is {self.pairs!r}, but must be one of {', '.join(PAIRS)}.")
        least = {
            "num_samples": 2,
            "min_margin": 0,
            "num_rounds": 1,
            "questions_per_round": 1,
            "held_out_questions": 1,
            "max_new_tokens": 1,
            "generation_batch_size": 1,
            "train_batch_size": 1,
            "lora_rank": 1,
            "seed": 0,
        }
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise SparseRMError(f"{name} is {getattr(self, name)}, but must be at least {bound}.")
        for name in ("temperature", "num_train_epochs", "learning_rate", "beta", "max_kl"):
            if not getattr(self, name) > 0:
                raise SparseRMError(f"{name} is {getattr(self, name)}, but must be greater than 0.")
        if not self.max_length_ratio > 1:
            raise SparseRMError(f"max_length_ratio is {self.max_length_ratio}, but must be greater than 1.")
