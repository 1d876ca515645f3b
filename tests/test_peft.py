"""PEFT: an adapter on the policy, this model as its reward, which stays as it is; and an adapter on this model."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import tiny_causal_lm, tiny_reward_model, tiny_rewards, tiny_texts
from transformers import AutoModelForSequenceClassification
from world import make_rows, train_arguments

from sparserm_hf.base_models.cutting import prepare_base_model
from sparserm_hf.cli.main import main
from sparserm_hf.runtime.batches import pad_texts
from sparserm_hf.runtime.errors import SparseRMError

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


ADAPTER = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)


@pytest.mark.works_with("peft", "LoRA on this model, trained together with its head, merged into a checkpoint")
@pytest.mark.parametrize("slim", [False, True])
def test_an_adapter_on_this_model_keeps_its_trained_head(slim, tmp_path):
    base = tiny_causal_lm()
    base.save_pretrained(tmp_path / "base")
    model = tiny_reward_model(base_model_name_or_path=str(tmp_path / "base"))
    (model.to_slim() if slim else model).save_pretrained(tmp_path / "model")
    adapted = get_peft_model(SparseRMForSequenceClassification.from_pretrained(tmp_path / "model"), ADAPTER)
    learns = {name.split(".lora_")[-1] for name, x in adapted.named_parameters() if x.requires_grad}
    head = {f"base_model.model.score.modules_to_save.default.{part}" for part in ("weight", "bias")}
    assert learns >= head and {name.split(".")[0] for name in learns - head} == {"A", "B"}
    optimizer = torch.optim.SGD([x for x in adapted.parameters() if x.requires_grad], lr=0.1)
    ids, mask = pad_texts(tiny_texts(), torch.device("cpu"))
    adapted.train()(input_ids=ids, attention_mask=mask, labels=torch.arange(6.0)).loss.backward()
    assert all(x.grad is not None for x in adapted.parameters() if x.requires_grad)
    optimizer.step()
    expected = tiny_rewards(adapted)
    assert (expected - tiny_rewards(model)).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")
    again = SparseRMForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(tiny_rewards(PeftModel.from_pretrained(again, tmp_path / "adapter")), expected)

    with pytest.raises(ValueError, match="carries an adapter: save the PeftModel, or call its merge_and_unload"):
        adapted.base_model.model.save_pretrained(tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = SparseRMForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(tiny_rewards(loaded), expected, atol=1e-4, rtol=1e-4)


def test_a_base_model_with_an_adapter_is_refused(world, tmp_path, capsys):
    """Its weights have other names, and an adapter's folder is no model."""
    adapted = get_peft_model(tiny_causal_lm(), LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(SparseRMError, match="carries an adapter of PEFT: call merge_and_unload"):
        prepare_base_model(adapted, 2, torch.device("cpu"), torch.float32)
    adapted.save_pretrained(tmp_path / "adapter")
    assert main(train_arguments(world, tmp_path / "model", model=tmp_path / "adapter")) == 2
    assert "is an adapter: merge it into its base model" in capsys.readouterr().err
