"""One round of DPO with LoRA, by TRL."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from ..runtime import SparseRMError, commit_of, replacing_folder, use_one_gpu
from .policy import Policy, memory_advice
from .responses import Row
from .settings import AlignmentConfig

logger = logging.getLogger(__name__)

TRAINING = "-training"  # what the name of the folder of a training ends with


def train_adapter(policy: Policy, pairs: Sequence[Row], config: AlignmentConfig, seed: int, folder: Path) -> None:
    """Train the policy on preference pairs; the reference is the policy as it comes in.

    A run that was stopped goes on from its last epoch.

    Args:
        policy: With a trainable adapter, or without one: it then gets a new one. It is changed.
        pairs: With `prompt`, `chosen` and `rejected` as messages.
        config: The settings.
        seed: Of the adapter's first weights and the order of the pairs.
        folder: Where the adapter goes.

    Raises:
        SparseRMError: The memory is too small, or the adapter ends up with weights that are no numbers.
    """
    work = folder.with_name(f"{folder.name}{TRAINING}")
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
    use_one_gpu(args)
    columns = ("prompt", "chosen", "rejected")
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules="all-linear",
        revision=commit_of(policy.model.config),  # of the base model, where it is the Hub's
    )
    with memory_advice("training", "lower train_batch_size, or set gradient_checkpointing"):
        trainer = DPOTrainer(
            model=policy.model,
            args=args,
            train_dataset=Dataset.from_list([{name: pair[name] for name in columns} for pair in pairs]),
            processing_class=policy.tokenizer,
            peft_config=None if isinstance(policy.model, PeftModel) else lora,
        )
        checkpoint = last_whole_checkpoint(work)
        trained: Any = trainer.model
        if checkpoint:  # transformers 4 restores what stands in subfolders alone: the reference
            trained.load_adapter(checkpoint, "default", is_trainable=True)
        trainer.train(resume_from_checkpoint=checkpoint)
    if not all(parameter.isfinite().all() for parameter in trained.parameters() if parameter.requires_grad):
        raise SparseRMError(f"The training of {folder} diverged; lower learning_rate, in a new folder.")
    with replacing_folder(folder) as temporary:
        trained.save_pretrained(temporary, selected_adapters=["default"])
        policy.tokenizer.save_pretrained(temporary)
    shutil.rmtree(work)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The Trainer's last checkpoint that was written to its end; those that were not are removed."""
    for state in (checkpoint / "trainer_state.json" for checkpoint in folder.glob("checkpoint-*")):
        try:
            json.loads(state.read_text("utf-8"))  # it is written last
        except (OSError, ValueError):
            shutil.rmtree(state.parent)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
