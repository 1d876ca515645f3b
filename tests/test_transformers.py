"""What transformers and accelerate do to a model: pipelines, Trainer, compile, checkpointing flags, device maps."""

import pytest
import torch
from datasets import Dataset
from tiny import tiny_reward_model, tiny_rewards, tiny_texts, tiny_tokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)
from world import without_package

from sparserm_hf.runtime.batches import pad_texts

pytestmark = pytest.mark.works_with(
    "transformers",
    "`pipeline`, `Trainer`, `torch.compile`, gradient checkpointing flags, `device_map` with layers on disk",
)


def test_the_pipeline_returns_the_raw_reward(reward_model, equal):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    ids = tiny_tokenizer()("w1 w2 w3", return_tensors="pt")
    (result,) = pipeline("text-classification", model=reward_model, tokenizer=reward_model)("w1 w2 w3")
    assert result["label"] == "reward"
    equal("transformers' pipeline", model(**ids).logits.item(), result["score"], 1e-5)


def test_the_trainer_predicts_and_evaluates(reward_model, tmp_path, equal):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    rows = Dataset.from_list([{"input_ids": text, "labels": 0.5} for text in tiny_texts()])
    args = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, per_device_eval_batch_size=2)
    trainer = Trainer(model=model, args=args, data_collator=DataCollatorWithPadding(tiny_tokenizer()))
    predicted = trainer.predict(rows).predictions[:, 0]
    equal("transformers' Trainer.predict", tiny_rewards(model), predicted, 1e-6)


def test_a_compiled_model_gives_the_same_rewards():
    model = tiny_reward_model()
    expected = tiny_rewards(model)
    torch.testing.assert_close(tiny_rewards(torch.compile(model, backend="aot_eager")), expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_flags_are_taken_and_change_nothing():
    model = tiny_reward_model()
    expected = tiny_rewards(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids, mask = pad_texts(tiny_texts(), torch.device("cpu"))
    logits = model(ids, mask).logits
    torch.testing.assert_close(logits[:, 0].detach(), expected)
    logits.sum().backward()
    assert model.score.weight.grad.abs().sum() > 0
    model.gradient_checkpointing_disable()


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_device_map_dtype_and_cache_dir_are_taken(reward_model, auto, tmp_path):
    model = auto.from_pretrained(
        reward_model, device_map="auto", dtype="auto", cache_dir=str(tmp_path / "hub"), revision="main"
    )
    torch.testing.assert_close(tiny_rewards(model), tiny_rewards(tiny_reward_model()))


def test_layers_may_lie_on_several_devices(reward_model):
    """As `device_map="auto"` does where one device is too small; here some layers are kept on disk."""
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    assert "LlamaDecoderLayer" in model._no_split_modules
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.rotary_emb": "cpu",
    }
    rest = ("model.norm", "sae", "score", "directions", "feature_mean", "empty_features")
    places |= dict.fromkeys(rest, "cpu")
    spread = AutoModelForSequenceClassification.from_pretrained(
        reward_model, device_map=places, offload_folder=f"{reward_model}-offloaded"
    )
    torch.testing.assert_close(tiny_rewards(spread), tiny_rewards(model))


def test_auto_classes_work_without_this_package(reward_model):
    code = (
        "import torch\n"
        "from transformers import AutoConfig, AutoModel\n"
        f"config = AutoConfig.from_pretrained({reward_model!r}, trust_remote_code=True)\n"
        f"model = AutoModel.from_pretrained({reward_model!r}, trust_remote_code=True)\n"
        "print(config.model_type, model(torch.tensor([[1, 7, 8]]), torch.ones(1, 3)).logits.item())"
    )
    shown = without_package(code)
    assert shown.returncode == 0, shown.stderr
    model_type, reward = shown.stdout.split()
    ids = torch.tensor([[1, 7, 8]])
    assert model_type == "sparserm"
    assert float(reward) == pytest.approx(tiny_reward_model()(ids, torch.ones(1, 3)).logits.item(), abs=1e-5)
