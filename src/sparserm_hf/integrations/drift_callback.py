"""How far a policy's responses are from what its reward model was trained on, in the logs of its training."""

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
    """Logs, each time the trainer logs, how the policy's completions differ from the training responses.

    Each time, the completions that were scored last are read, and the last 256 of those that were read are measured: a
    share of a handful would be chance. The figures are those of `sparserm monitor`: `drift/shift`, `drift/outside`,
    `drift/reward_shift` and `drift/disagreement`; see `Drift`. Where one is above the threshold, a warning says so.

    ```python
    reward = SparseRMReward("my-reward-model")
    trainer = GRPOTrainer(model="my-policy", reward_funcs=reward, ...)
    trainer.add_callback(DriftCallback(trainer, reward))
    ```

    Args:
        trainer: The trainer, whose logs it writes to.
        reward: One of its reward functions.
        alarm: The threshold, a share.

    Raises:
        SparseRMError: The reward model does not know what its training responses were like.
    """

    def __init__(self, trainer: Trainer, reward: SparseRMReward, alarm: float = ALARM):
        self.trainer, self.reward, self.alarm = trainer, reward, alarm
        self.window: list[ScoredResponses] = []
        self.reference: DriftReference = load_reference(reward.model, reward.revision)

    @cached_property
    def controls(self) -> list[Control]:
        """Those saved beside the reward model."""
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
        Trainer.log(self.trainer, drift.flat())  # TRL's own `log` would empty the trainer's metrics into ours
        if state.is_world_process_zero:
            for alarm in drift.alarms(self.alarm):
                logger.warning("Step %d: %s.", state.global_step, alarm)
