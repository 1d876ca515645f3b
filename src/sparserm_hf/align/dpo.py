"""One round of DPO with LoRA, by TRL."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..runtime import (
    SparseRMError,
    commit_of,
    last_whole_checkpoint,
    memory_advice,
    replacing_folder,
    use_one_gpu,
    without_extra,
)
from .policy import Policy
from .responses import Row
from .settings import AlignmentConfig

try:
    from peft import LoraConfig, PeftModel
    from trl import DPOConfig, DPOTrainer
except ModuleNotFoundError as error:
    raise without_extra("Alignment", error, "align") from None

logger = logging.getLogger(__name__)

TRAINING = "-training"  # suffix of the folder in which the Trainer keeps its checkpoints


def _training_arguments(policy: Policy, config: AlignmentConfig, seed: int, folder: Path) -> DPOConfig:
    args = DPOConfig(
        output_dir=str(folder),
        num_train_epochs=config.num_train_epochs,
        learning_rate=config.learning_rate,
        beta=config.beta,
        per_device_train_batch_size=config.train_batch_size,
        precompute_ref_log_probs=True,  # once, instead of in every epoch
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
    return args


def _new_adapter(policy: Policy, config: AlignmentConfig) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules="all-linear",
        revision=commit_of(policy.model.config),  # of a base model on the Hub
    )


def train_adapter(policy: Policy, pairs: Sequence[Row], config: AlignmentConfig, seed: int, folder: Path) -> None:
    """Train a LoRA adapter of the policy on preference pairs by DPO; the reference is the policy before the training.

    A training that was interrupted continues from its last epoch.

    Args:
        policy: The policy, changed in place. A policy without a trainable adapter gets a new adapter.
        pairs: Rows with `prompt`, `chosen` and `rejected` as messages.
        config: Settings of the run.
        seed: Seed of a new adapter's weights and of the order of the pairs.
        folder: Folder to write the adapter to.

    Raises:
        SparseRMError: The memory is too small, or the training diverged: a weight of the adapter is not finite.
    """
    work = folder.with_name(f"{folder.name}{TRAINING}")
    args = _training_arguments(policy, config, seed, work)
    columns = ("prompt", "chosen", "rejected")
    with memory_advice("training", "lower train_batch_size, or set gradient_checkpointing"):
        trainer = DPOTrainer(
            model=policy.model,
            args=args,
            train_dataset=Dataset.from_list([{name: pair[name] for name in columns} for pair in pairs]),
            processing_class=policy.tokenizer,
            peft_config=None if isinstance(policy.model, PeftModel) else _new_adapter(policy, config),
        )
        checkpoint = last_whole_checkpoint(work)
        trained: Any = trainer.model
        if checkpoint:  # transformers 4 restores only adapters in subfolders, and so only the reference
            trained.load_adapter(checkpoint, "default", is_trainable=True)
        trainer.train(resume_from_checkpoint=checkpoint)
    if not all(parameter.isfinite().all() for parameter in trained.parameters() if parameter.requires_grad):
        raise SparseRMError(f"The training of {folder} diverged: start a new folder with a lower learning_rate.")
    with replacing_folder(folder) as temporary:
        trained.save_pretrained(temporary, selected_adapters=["default"])
        policy.tokenizer.save_pretrained(temporary)
    shutil.rmtree(work)
