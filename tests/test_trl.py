"""A drop-in reward model for TRL: trained by RewardTrainer, used by GRPO, RLOO and online DPO."""

import pickle

import pytest
import torch
from datasets import Dataset
from documented import snippet
from peft import LoraConfig
from tiny import tiny_tokenizer
from transformers import AutoModelForSequenceClassification
from world import make_rows, start_server

from sparserm_hf import SparseRMReward, compare
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows

trl = pytest.importorskip("trl")

SETTINGS = {
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
}
if "trust_remote_code" in trl.RewardConfig.__dataclass_fields__:  # before TRL 1.7 the import of this package does
    SETTINGS["trust_remote_code"] = True


trained = pytest.mark.works_with("trl", "`RewardTrainer`: only the head moves; a run resumes to the same bits")


def weights_changed_by(trainer):
    """Train, and return the names of the weights that have changed."""
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    return {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}


@trained
def test_reward_trainer_moves_the_head_only(reward_model, tmp_path):
    args = trl.RewardConfig(str(tmp_path / "out"), max_steps=3, learning_rate=1e-2, **SETTINGS)
    trainer = trl.RewardTrainer(model=reward_model, args=args, train_dataset=Dataset.from_list(make_rows(16)))
    assert weights_changed_by(trainer) == {"score.weight", "score.bias"}
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(reloaded.score.weight, trainer.model.score.weight)


@trained
def test_reward_trainer_resumes_from_a_checkpoint_to_the_same_bits(reward_model, tmp_path):
    def run(name, steps, resume=None):
        settings = SETTINGS | {"save_strategy": "steps", "save_steps": 2}
        args = trl.RewardConfig(
            str(tmp_path / name), max_steps=steps, learning_rate=1e-2, lr_scheduler_type="constant", **settings,
        )  # fmt: skip
        trainer = trl.RewardTrainer(model=reward_model, args=args, train_dataset=Dataset.from_list(make_rows(24)))
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.score.weight

    whole = run("whole", 4)
    run("cut", 2)
    assert torch.equal(run("cut", 4, resume=str(tmp_path / "cut" / "checkpoint-2")), whole)


@pytest.mark.works_with(
    "trl", "`sparserm evaluate --against` a model of `RewardTrainer`, or its LoRA: its own figures"
)
@pytest.mark.parametrize("lora", [False, True])
def test_a_model_of_reward_trainer_is_compared_by_its_own_figures(lora, policy, reward_model, tmp_path):
    rows, settings = make_rows(16), SETTINGS | {"per_device_eval_batch_size": 16}
    args = trl.RewardConfig(str(tmp_path / "out"), max_steps=3, learning_rate=1e-3, **settings)
    trainer = trl.RewardTrainer(
        model=policy,
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, modules_to_save=["score"]) if lora else None,
    )
    trainer.train()
    trainer.evaluate()
    told = trainer.state.log_history[-1]  # TRL 1.0 returns the loss alone
    trainer.save_model(str(tmp_path / "saved"))
    metrics = compare(reward_model, str(tmp_path / "saved"), rows, dtype="float32").metrics[1]
    assert metrics.accuracy == pytest.approx(told["eval_accuracy"])
    assert metrics.margin == pytest.approx(told["eval_margin"], abs=1e-4)


def shortness(completions, **columns):
    """A reward function beside the model."""
    return [-float(len(completion[0]["content"])) for completion in completions]


def given_as(form, reward_model):
    if form == "path":
        return reward_model
    if form == "instance":
        return AutoModelForSequenceClassification.from_pretrained(reward_model)
    if form == "function":
        return pickle.loads(pickle.dumps(SparseRMReward(reward_model)))
    return [reward_model, shortness]


def rewards_again(reward_model, prompts, completions):
    """What `sparserm score` makes of them."""
    model, tokenizer = load_reward_model(reward_model, torch.device("cpu"))
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
    return [row["reward"] for row in score_rows(model, tokenizer, rows)]


def spying(trainer_class, seen):
    """A trainer that notes prompts, completions and the rewards of the first function."""

    class Spying(trainer_class):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
            seen.append((prompts, completions, rewards[:, 0]))
            return rewards

    return Spying


FORMS = "as a path, an instance, a function (`SparseRMReward`) and in a list"


@pytest.mark.works_with("trl", f"`GRPOTrainer` and `RLOOTrainer`: {FORMS}; the rewards are those of `sparserm score`")
@pytest.mark.parametrize("form", ["path", "instance", "function", "list"])
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_policy_gradients_train_on_the_rewards_that_score_gives(kind, form, reward_model, policy, tmp_path, equal):
    config, trainer_class = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    args = config(
        str(tmp_path / "out"), max_steps=2, num_generations=2, max_completion_length=8, logging_steps=1,
        **SETTINGS,
    )  # fmt: skip
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(8)])
    seen = []

    trainer = spying(trainer_class, seen)(
        model=policy,
        reward_funcs=given_as(form, reward_model),
        args=args,
        train_dataset=prompts,
        peft_config=LoraConfig(target_modules=["q_proj"], r=2) if form == "path" else None,
    )
    trainer.train()
    assert len(seen) == 2
    for prompts_seen, completions, rewards in seen:
        expected = rewards_again(reward_model, prompts_seen, completions)
        equal(f"TRL's {kind}Trainer, reward model as {form}", expected, rewards, 1e-5)
    logged = trainer.state.log_history[0]
    assert logged["rewards/reward-model/mean"] == pytest.approx(seen[0][2].mean().item(), rel=1e-4)
    if form != "list":
        assert logged["rewards/reward-model/mean"] == logged["reward"] and logged["reward_std"] > 0
    if form == "function":
        parts = logged["reward-model/chosen"] + logged["reward-model/rejected"]
        model = AutoModelForSequenceClassification.from_pretrained(reward_model)
        average = model.reward(model.feature_mean[None]).item()
        assert parts + average == pytest.approx(seen[0][2].mean().item(), rel=1e-4)


@pytest.mark.works_with("trl", "an asynchronous reward function of `GRPOTrainer`, which asks `sparserm serve`")
def test_an_asynchronous_reward_function_asks_a_server(reward_model, policy, tmp_path, equal):
    process, address = start_server(reward_model)
    exec(snippet("trainers.md", "async def").replace("http://localhost:8000", address), namespace := {})
    seen = []
    args = trl.GRPOConfig(str(tmp_path), max_steps=2, num_generations=2, max_completion_length=8, **SETTINGS)
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(8)])
    rewards = [namespace["server_reward"], shortness]
    try:
        trainer = spying(trl.GRPOTrainer, seen)
        trainer(model=policy, reward_funcs=rewards, args=args, train_dataset=prompts).train()
    finally:
        process.kill()
    assert len(seen) == 2
    for prompts_seen, completions, found in seen:
        expected = rewards_again(reward_model, prompts_seen, completions)
        equal("TRL's GRPOTrainer, asynchronously from a server", expected, found, 1e-5)


@pytest.mark.works_with("trl", f"`OnlineDPOTrainer`: {FORMS}")
@pytest.mark.parametrize("form", ["path", "instance", "function", "list"])
def test_online_dpo_trains_on_it(form, reward_model, policy, tmp_path, equal):
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    args = OnlineDPOConfig(
        str(tmp_path / "out"), max_steps=2, max_new_tokens=8, max_length=64, logging_steps=1,
        **SETTINGS,
    )  # fmt: skip
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(8)])
    seen = []

    class Spying(OnlineDPOTrainer):
        def _calculate_rewards_from_functions(self, prompts, completions, completion_ids_list, **columns):
            rewards = super()._calculate_rewards_from_functions(prompts, completions, completion_ids_list, **columns)
            seen.append((prompts, completions, rewards))
            return rewards

    trainer = Spying(
        model=policy,
        reward_funcs=given_as(form, reward_model),
        args=args,
        train_dataset=prompts,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert len(seen) == 2 and trainer.state.log_history[0]["loss"] > 0
    for prompts_seen, completions, rewards in seen:
        expected = torch.tensor(rewards_again(reward_model, prompts_seen, completions))
        beside = torch.tensor(shortness(completions)) if form == "list" else 0.0
        equal(f"TRL's OnlineDPOTrainer, reward model as {form}", expected + beside, rewards)
