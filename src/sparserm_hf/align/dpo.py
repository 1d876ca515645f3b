"""One round of DPO with LoRA, by TRL."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from ..checkpoints import replacing_folder
from .pairs import Row
from .policy import Policy, memory_advice
from .settings import AlignmentConfig

logger = logging.getLogger(__name__)


def train_adapter(policy: Policy, pairs: Sequence[Row], config: AlignmentConfig, seed: int, folder: Path) -> None:
    """Train the policy on preference pairs; the reference is the policy as it comes in.

    A run that was stopped goes on from its last epoch.

    Args:
        policy: With a trainable adapter, or without one: it then gets a new one. It is changed.
        pairs: With `prompt`, `chosen` and `rejected` as messages.
        config: The settings.
        seed: Of the adapter's first weights and the order of the pairs.
        folder: Where the adapter goes.
    """
    work = folder.with_name(f"{folder.name}-training")
    args = DPOConfig(
        output_dir=str(work),
        num_train_epochs=config.num_train_epochs,
        learning_rate=config.learning_rate,
        beta=config.beta,
        per_device_train_batch_size=config.train_batch_size,
        precompute_ref_log_probs=True,  # once, not once an epoch
        precompute_ref_batch_size=config.train_batch_size,
        gradient_checkpointing=config.gradient_checkpointing,
        max_length=None,
        seed=seed,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=5,
        report_to="none",
        use_cpu=policy.model.device.type == "cpu",
    )
    columns = ("prompt", "chosen", "rejected")
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear"
    )
    with memory_advice("training", "train_batch_size, or set gradient_checkpointing"):
        trainer = DPOTrainer(
            model=policy.model,
            args=args,
            train_dataset=Dataset.from_list([{name: pair[name] for name in columns} for pair in pairs]),
            processing_class=policy.tokenizer,
            peft_config=None if isinstance(policy.model, PeftModel) else lora,
        )
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    with replacing_folder(folder) as temporary:
        trained: Any = trainer.model
        trained.save_pretrained(temporary, selected_adapters=["default"])
        policy.tokenizer.save_pretrained(temporary)
    shutil.rmtree(work)
