"""Train a policy with TRL's online DPO and LoRA; a SparseRM reward model picks the better of two responses.

    python examples/online_dpo.py REWARD_MODEL POLICY QUESTIONS.jsonl OUTPUT_DIR [STEPS]

QUESTIONS has rows with a `prompt`, a string or messages. `sparserm align` trains on the same questions by DPO.
"""

import sys

import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from sparserm_hf import SparseRMReward, load_preferences


def main(reward_model: str, policy: str, questions: str, output_dir: str, steps: str = "100") -> None:
    prompts = load_preferences(questions).select_columns("prompt")
    if isinstance(prompts[0]["prompt"], str):
        prompts = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    args = OnlineDPOConfig(
        output_dir,
        max_steps=int(steps),
        learning_rate=1e-4,
        per_device_train_batch_size=8,
        max_new_tokens=64,
        logging_steps=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = OnlineDPOTrainer(
        model=policy,
        reward_funcs=SparseRMReward(reward_model),
        args=args,
        train_dataset=prompts,
        processing_class=AutoTokenizer.from_pretrained(policy, padding_side="left"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
