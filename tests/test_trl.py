"""A drop-in reward model for TRL: trained by RewardTrainer, used by GRPOTrainer, both by its path."""

import pytest
import torch
from datasets import Dataset
from test_training import make_rows
from tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, pipeline

from sparserm_hf.checkpoints import save_tokenizer

trl = pytest.importorskip("trl")

SETTINGS = {
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
}


@pytest.fixture
def reward_model(tmp_path):
    folder = tmp_path / "reward-model"
    tiny_reward_model().save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder)
    return str(folder)


def test_reward_trainer_moves_the_head_only(reward_model, tmp_path):
    args = trl.RewardConfig(str(tmp_path / "out"), max_steps=3, learning_rate=1e-2, trust_remote_code=True, **SETTINGS)
    trainer = trl.RewardTrainer(model=reward_model, args=args, train_dataset=Dataset.from_list(make_rows(16)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"score.weight", "score.bias"}
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(reloaded.score.weight, trainer.model.score.weight)


def test_grpo_takes_it_by_its_path(reward_model, tmp_path):
    policy = tmp_path / "policy"
    tiny_causal_lm(seed=1).save_pretrained(policy)
    save_tokenizer(tiny_tokenizer(), policy)
    args = trl.GRPOConfig(
        str(tmp_path / "out"),
        max_steps=1,
        num_generations=2,
        max_completion_length=8,
        trust_remote_code=True,
        **SETTINGS,
    )
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(8)])
    trainer = trl.GRPOTrainer(model=str(policy), reward_funcs=reward_model, args=args, train_dataset=prompts)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/reward-model/mean"] == logged["reward"] and logged["reward_std"] > 0


def test_the_pipeline_returns_the_raw_reward(reward_model):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    ids = tiny_tokenizer()("w1 w2 w3", return_tensors="pt")
    (result,) = pipeline("text-classification", model=reward_model, tokenizer=reward_model)("w1 w2 w3")
    assert result["label"] == "reward"
    assert result["score"] == pytest.approx(model(**ids).logits.item(), rel=1e-5)


def test_device_map_and_cache_dir_are_taken(reward_model, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(
        reward_model, device_map="auto", dtype="auto", cache_dir=str(tmp_path / "hub"), revision="main"
    )
    assert model(torch.tensor([[1, 7, 8]]), torch.ones(1, 3)).logits.shape == (1, 1)
