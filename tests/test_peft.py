"""PEFT: an adapter on the policy, this model as its reward, which stays as it is."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification
from world import make_rows

trl = pytest.importorskip("trl")


@pytest.mark.works_with("peft", "LoRA on the policy that it rewards")
def test_the_adapter_learns_and_the_reward_model_stays(reward_model, policy, tmp_path):
    rewarding = AutoModelForSequenceClassification.from_pretrained(reward_model)
    before = {name: value.clone() for name, value in rewarding.state_dict().items()}
    trainer = trl.GRPOTrainer(
        model=policy,
        reward_funcs=rewarding,
        args=trl.GRPOConfig(
            str(tmp_path / "out"),
            max_steps=2,
            num_generations=4,
            max_completion_length=8,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(8)]),
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], r=2),
    )
    started = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, started[name])}
    assert moved and all("lora_" in name for name in moved)
    after = trainer.reward_funcs[0].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
