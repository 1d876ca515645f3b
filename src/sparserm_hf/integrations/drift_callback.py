"""A callback that logs how far a policy's responses are from its reward model's training responses."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..evaluation import Control, DriftReference, find_controls
from ..monitoring import ALARM, ScoredResponses, load_reference, measure_drift, score_for_drift
from .reward_function import SparseRMReward

logger = logging.getLogger(__name__)

WINDOW = 256  # completions that are measured together


class DriftCallback(TrainerCallback):
    """Log how far the policy's completions are from the reward model's training responses, whenever the trainer logs.

    The last 256 completions are measured, because the figures of a few completions are mostly chance. The figures are
    those of `sparserm monitor`: `drift/shift`, `drift/outside`, `drift/reward_shift` and `drift/disagreement`; see
    `Drift`. A warning is logged if `drift/outside` or `drift/disagreement` is above the threshold.

    Args:
        trainer: Trainer of the policy; the figures are added to its logs.
        reward: A reward function of the trainer.
        alarm: Threshold of the warnings, from 0 to 1.

    Raises:
        SparseRMError: The reward model was saved without its drift reference.

    Example:
        ```python
        from datasets import load_dataset
        from trl import GRPOConfig, GRPOTrainer

        from sparserm_hf import DriftCallback, SparseRMReward

        reward = SparseRMReward("my-reward-model")
        questions = load_dataset("json", data_files="questions.jsonl", split="train")
        args = GRPOConfig("grpo", max_steps=1, num_generations=2, per_device_train_batch_size=2)
        trainer = GRPOTrainer(model="my-policy", reward_funcs=reward, args=args, train_dataset=questions)
        trainer.add_callback(DriftCallback(trainer, reward))
        trainer.train()
        ```
    """

    def __init__(self, trainer: Trainer, reward: SparseRMReward, alarm: float = ALARM):
        self.trainer, self.reward, self.alarm = trainer, reward, alarm
        self.window: list[ScoredResponses] = []
        self.reference: DriftReference = load_reference(reward.model, reward.revision)

    @cached_property
    def controls(self) -> list[Control]:
        """Controls saved beside the reward model."""
        return find_controls(self.reward.model, self.reward.revision)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure and log, at the steps at which the trainer logs."""
        if state.global_step % max(int(state.logging_steps), 1) or not self.reward.seen:
            return
        model, _ = self.reward.load()
        self.window += gather_object([score_for_drift(model, self.controls, self.reward.seen)])
        self.window = [ScoredResponses.joined(self.window).last(WINDOW)]
        drift = measure_drift(self.reference, self.window[0])
        Trainer.log(self.trainer, drift.flat())  # TRL's `log` would move its own pending metrics into this entry
        if state.is_world_process_zero:
            for alarm in drift.alarms(self.alarm):
                logger.warning("Step %d: %s.", state.global_step, alarm)
