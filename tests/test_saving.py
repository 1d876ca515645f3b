"""A model that is saved loads again with the same rewards, whatever happened to it; what trainers expect of it."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from sparserm_hf.modeling.configuration_sparserm import LEGACY_ROPE_FIELDS
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import ARCHITECTURES, VOCAB, tiny_causal_lm, tiny_reward_model, tiny_rewards, tiny_texts, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments
from world import train_arguments

from sparserm_hf.base_models.loading import load_language_model
from sparserm_hf.cli.main import main
from sparserm_hf.runtime.batches import pad_texts


@pytest.fixture
def base(tmp_path):
    """The folder of a base model, for slim checkpoints."""
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def merge(model, matrix):
    """What merging a LoRA adapter does: through `data`, past any counter."""
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data += matrix(weight.shape)


def test_a_slim_model_whose_base_changed_is_saved_with_it(base, tmp_path, caplog):
    """An adapter was merged, the model saved slim, and reloaded: -2.429 for -0.457, without a word."""
    tiny_reward_model(base_model_name_or_path=base).to_slim().save_pretrained(tmp_path / "slim")
    model = SparseRMForSequenceClassification.from_pretrained(tmp_path / "slim")
    before = tiny_rewards(model)
    generator = torch.Generator().manual_seed(0)
    merge(model, lambda shape: 1e-2 * torch.randn(shape[0], 1, generator=generator) @ torch.ones(1, shape[1]))
    changed = tiny_rewards(model)
    assert (changed - before).abs().max() > 1e-3
    with caplog.at_level("WARNING", "transformers"):
        model.save_pretrained(tmp_path / "merged")
    again = SparseRMForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(tiny_rewards(again), changed)
    assert not again.config.slim and model.config.slim, "the model in memory is what it was"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_slim_model_stays_slim_in_another_type_and_with_a_state_dict(dtype, base, tmp_path):
    """With a state dict, as FSDP and DeepSpeed pass one, 1,132 bytes once became 89,572."""
    tiny_reward_model(base_model_name_or_path=base).to_slim().save_pretrained(tmp_path / "slim")
    model = SparseRMForSequenceClassification.from_pretrained(tmp_path / "slim", dtype=dtype)
    model.to(torch.bfloat16)
    for name, state in (("plain", None), ("given", model.state_dict()), ("none of it", {})):
        model.save_pretrained(tmp_path / name, state_dict=state)
    for name in ("plain", "given"):
        assert (tmp_path / name / "model.safetensors").stat().st_size < 3000
        assert json.loads((tmp_path / name / "config.json").read_text())["slim"]


@pytest.mark.parametrize("slim", [False, True])
def test_resized_embeddings_load_again(slim, base, tmp_path):
    """`vocab_size` of the configuration and of its `base_config` disagreed, and the checkpoint never loaded."""
    model = tiny_reward_model(base_model_name_or_path=base)
    model = model.to_slim() if slim else model
    model.resize_token_embeddings(VOCAB + 5)
    expected = tiny_rewards(model)
    model.save_pretrained(tmp_path / "resized")
    again = SparseRMForSequenceClassification.from_pretrained(tmp_path / "resized")
    torch.testing.assert_close(tiny_rewards(again), expected)
    assert again.config.vocab_size == again.config.base_config.vocab_size == VOCAB + 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_base_model_that_transformers_5_has_saved_is_read_as_it_was(architecture, tmp_path):
    """transformers 4 finds none of its rotary embedding's settings, and silently takes its own."""
    model = tiny_causal_lm(architecture)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in (*LEGACY_ROPE_FIELDS, "partial_rotary_factor", "rotary_emb_base", "rotary_pct"):
        saved.pop(name, None)
    rope = ARCHITECTURES[architecture].get("rope_parameters", {})
    (tmp_path / "config.json").write_text(json.dumps(saved | {"rope_parameters": rope}))
    ids = torch.tensor([[1, 7, 8, 9, 10, 11]])
    torch.testing.assert_close(load_language_model(str(tmp_path))(ids).logits, model(ids).logits)


def test_labels_give_a_loss_and_a_trainer_evaluates_with_it(tmp_path):
    model = tiny_reward_model()
    ids, mask = pad_texts(tiny_texts(), torch.device("cpu"))
    labels = torch.arange(6.0)
    output = model(ids, mask, labels=labels)
    torch.testing.assert_close(output.loss, ((output.logits[:, 0] - labels) ** 2).mean())
    assert model(ids, mask).loss is None
    rows = Dataset.from_list([{"input_ids": text, "labels": float(i)} for i, text in enumerate(tiny_texts())])
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=2, learning_rate=1e-3),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        compute_metrics=lambda given: {"spread": float(given.predictions.std())},
    )
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-4) and before["eval_spread"] > 0
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]


def test_an_unknown_argument_is_refused():
    """A misspelt `atention_mask` was swallowed, and the reward another one."""
    ids = torch.tensor([tiny_texts()[0]])
    with pytest.raises(TypeError, match="does not know the argument 'atention_mask'; it knows input_ids, "):
        tiny_reward_model()(ids, atention_mask=torch.ones_like(ids))


def test_a_reward_model_has_one_label(reward_model):
    with pytest.raises(ValueError, match="num_labels is 2, but a reward model has one"):
        AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=2)


@pytest.mark.parametrize("head_type", ["linear", "mlp"])
def test_a_replica_of_data_parallel_scores(head_type):
    """Replicas hold their weights as plain attributes: `next(parameters())` raised in them."""
    model = tiny_reward_model(head_type=head_type)
    expected = tiny_rewards(model)
    replica = copy.deepcopy(model)
    for module in replica.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                setattr(module, name, parameter.detach())
    assert not list(replica.parameters())
    torch.testing.assert_close(tiny_rewards(replica), expected)


def test_what_does_not_load_again_is_not_written(world, tmp_path, monkeypatch, capsys):
    """OPT trained, exited 0, and the checkpoint never loaded: nothing had tried."""
    save = SparseRMForSequenceClassification.save_pretrained

    def forget(model, folder, **kwargs):
        state = {**model.state_dict(), "score.weight": model.score.weight + 1}
        save(model, folder, state_dict=state, **kwargs)

    monkeypatch.setattr(SparseRMForSequenceClassification, "save_pretrained", forget)
    assert main(train_arguments(world, tmp_path / "model")) == 2
    error = capsys.readouterr().err
    assert "The saved model gives a reward of" in error and "nothing was written" in error
    assert not list(tmp_path.iterdir())
