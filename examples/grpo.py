"""Train a policy with GRPO and LoRA on a SparseRM reward; the logs show the features' contributions and the drift.

    python examples/grpo.py REWARD_MODEL POLICY QUESTIONS.jsonl OUTPUT_DIR [STEPS]

QUESTIONS has rows with a `prompt`, a string or messages. `sparserm align` trains on the same questions by DPO.
"""

import sys

import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from sparserm_hf import DriftCallback, SparseRMReward, load_preferences


def main(reward_model: str, policy: str, questions: str, output_dir: str, steps: str = "100") -> None:
    reward = SparseRMReward(reward_model)
    prompts = load_preferences(questions).select_columns("prompt")
    if isinstance(prompts[0]["prompt"], str):
        prompts = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    args = GRPOConfig(
        output_dir,
        max_steps=int(steps),
        learning_rate=1e-4,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=64,
        logging_steps=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=args,
        train_dataset=prompts,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    )
    trainer.add_callback(DriftCallback(trainer, reward))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
