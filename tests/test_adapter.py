"""A LoRA adapter in front of the SAE: what it changes, what it leaves alone, and what a kill costs."""

import copy
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from sparserm_hf.modeling.pooling_sparserm import pool_representations
from tiny import ARCHITECTURES, tiny_causal_lm, tiny_texts, tokenized
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from world import TWO_PROCESSES, make_rows, train_arguments, write_jsonl

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, evaluate, load_preferences, monitor
from sparserm_hf.cli.main import main
from sparserm_hf.evaluation import find_controls
from sparserm_hf.representations.representer import Pooling, Representer
from sparserm_hf.runtime import SparseRMError
from sparserm_hf.training import adapter, adapter_training


@pytest.fixture(scope="module", autouse=True)
def fast():
    """A tiny model needs larger steps than a real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_training, "LEARNING_RATE", 2e-2)
        patch.setattr(adapter_training, "EPOCHS", 5)
        yield


def trainer_for(world, folder, cache, data="train.jsonl", evaluated=True, **changes):
    defaults = {"k": 2, "check_sae": False, "dtype": "float32", "adapter_rank": 2, "cache_dir": str(cache)}
    args = SparseRMTrainingConfig(str(folder), **defaults | changes)
    test = load_preferences(str(world / "train.jsonl")) if evaluated else None
    return SparseRMTrainer(str(world / "base"), str(world / "sae"), args, load_preferences(str(world / data)), test)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def adapted(world, cache, tmp_path_factory):
    """A trainer that has trained with an adapter, and saved."""
    trainer = trainer_for(world, tmp_path_factory.mktemp("adapted") / "model", cache)
    trainer.train()
    trainer.save_model()
    return trainer


def weights_in(cache):
    (path,) = cache.glob(f"*/{adapter.RESULT_FILE}")
    return path


def test_an_adapter_fits_its_training_pairs_better_than_the_head_alone(adapted):
    rows = adapted.evaluation.metrics
    assert list(rows)[:3] == ["SparseRM", "without adapter", "dense representation"]
    assert rows["SparseRM"].accuracy > rows["without adapter"].accuracy + 0.05


def test_only_the_upper_half_of_the_layers_changes_and_the_frozen_model_stays(adapted):
    model, base = adapted.frozen, adapted._frozen_parts.base_model
    layers = zip(base.layers, adapted.base_model.layers, strict=True)
    same = [all(map(torch.equal, a.parameters(), b.parameters())) for a, b in layers]
    assert same == [True, False]
    assert torch.equal(base.embed_tokens.weight, adapted.base_model.embed_tokens.weight)
    assert not any(p.requires_grad for p in adapted.base_model.parameters())
    head_alone = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapted.metrics["trainable_parameters"] > head_alone == 5


def test_the_saved_model_gives_the_rewards_of_training(adapted, equal):
    loaded = AutoModelForSequenceClassification.from_pretrained(adapted.args.output_dir)
    pairs, margins = adapted.evaluated, adapted.evaluation.margins["SparseRM"]
    for i in range(5):
        chosen, rejected = (
            loaded(torch.tensor([pairs.texts[of[i]].ids])).logits.item() for of in (pairs.chosen, pairs.rejected)
        )
        equal("an adapted model, trained and loaded", chosen - rejected, margins[i], 1e-4)
    assert [control.name for control in find_controls(adapted.args.output_dir)] == ["length alone"]


def test_the_reward_is_still_a_sum_over_orthonormal_directions(adapted):
    model = adapted.model
    assert torch.allclose(model.directions @ model.directions.T, torch.eye(4), atol=1e-5)
    text = adapted.train_pairs.texts[0]
    found = model.explain(torch.tensor([text.ids]))
    assert torch.allclose(found.base + found.contributions.sum(), found.reward[0], atol=1e-4)
    for when in ("frozen", "adapted"):
        assert {f"{when}_{name}" for name in ("explained_variance", "l0", "claims")} <= set(adapted.metrics)


def test_the_card_says_what_the_adapter_changed(adapted):
    card = (Path(adapted.args.output_dir) / "README.md").read_text()
    assert "a LoRA adapter of rank 2 merged" in card and "which training left unchanged" not in card
    claims = [f"{100 * adapted.metrics[f'{when}_claims']:.1f}" for when in ("frozen", "adapted")]
    assert f"| claims of explanations that hold, % | {' | '.join(claims)} |" in card


def test_what_needs_controls_of_the_frozen_model_says_that_there_are_none(adapted, world):
    found = evaluate(adapted.args.output_dir, load_preferences(str(world / "test.jsonl")))
    assert list(found.margins) == ["SparseRM", "length alone"]
    assert len(monitor(adapted.args.output_dir, [{"text": "w1 w2 w3"}]).latents) == 4


def test_the_weights_of_a_16_bit_checkpoint_are_those_that_were_evaluated(world, tmp_path, equal):
    """Merged in float32 and saved in bfloat16, the rewards of the checkpoint were not those of its evaluation."""
    base = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    args = SparseRMTrainingConfig(
        str(tmp_path / "m"), k=2, check_sae=False, dtype="float32", adapter_rank=2, cache_dir=str(tmp_path / "cache")
    )
    pairs = load_preferences(str(world / "train.jsonl"))
    trainer = SparseRMTrainer(base, str(world / "sae"), args, pairs, pairs, tokenizer)
    trainer.train()
    trainer.save_model()
    saved = evaluate(str(tmp_path / "m"), pairs).margins["SparseRM"]
    assert AutoConfig.from_pretrained(tmp_path / "m").dtype == torch.bfloat16
    equal("an adapted model of 16 bits, evaluated and saved", trainer.evaluation.margins["SparseRM"], saved, 1e-5)


def test_a_slim_copy_is_refused(adapted):
    with pytest.raises(ValueError, match="an adapter has changed this one"):
        adapted.model.to_slim()


def test_training_twice_starts_from_the_frozen_model_again(world, cache, tmp_path):
    trainer = trainer_for(world, tmp_path / "model", cache)
    trainer.train()
    first = trainer.evaluation.margins
    trainer.train()
    assert all(np.array_equal(trainer.evaluation.margins[name], first[name]) for name in first)


def test_the_next_run_takes_the_adapter_from_the_cache(adapted, world, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_training, "train", None)
    again = trainer_for(world, tmp_path / "model", cache)
    again.train()
    assert np.array_equal(again.evaluation.margins["SparseRM"], adapted.evaluation.margins["SparseRM"])


class Killed(Exception):
    """As if the process had been killed."""


@pytest.mark.works_with("peft", "`sparserm train --adapter_rank`: a killed run goes on to the same bits")
@pytest.mark.parametrize("step", [3, 11, 22])
def test_a_killed_run_goes_on_to_the_same_bits(adapted, world, cache, tmp_path, monkeypatch, step):
    class Killing(adapter_training.Progress):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(adapter_training, "Progress", Killing)
        trainer_for(world, tmp_path / "model", tmp_path / "cache", evaluated=False).train()
    resumed = trainer_for(world, tmp_path / "model", tmp_path / "cache", evaluated=False)
    resumed.train()
    whole, after = load_file(weights_in(cache)), load_file(weights_in(tmp_path / "cache"))
    assert whole.keys() == after.keys()
    assert all(torch.equal(whole[name], after[name]) for name in whole)
    assert [path.name for path in weights_in(tmp_path / "cache").parent.iterdir()] == [adapter.RESULT_FILE]


def test_a_broken_result_is_trained_again(adapted, world, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    path = weights_in(tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:1000])
    trainer_for(world, tmp_path / "model", tmp_path / "cache", evaluated=False).train()
    whole, after = load_file(weights_in(cache)), load_file(path)
    assert all(torch.equal(whole[name], after[name]) for name in whole)


def test_other_settings_get_another_adapter(adapted, world, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "cache")
    trainer_for(world, tmp_path / "model", tmp_path / "cache", evaluated=False, seed=1).train()
    assert len(list((tmp_path / "cache").glob(f"*/{adapter.RESULT_FILE}"))) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_rank": -1}, "adapter_rank is -1, but must be at least 0"),
        (
            {"slim": True},
            "adapter_rank and slim exclude each other: a slim checkpoint",
        ),
        ({"quantization": "bnb-4bit"}, "adapter_rank and quantization exclude each other"),
        ({"debias": "length"}, "adapter_rank and debias exclude each other"),
    ],
)
def test_what_an_adapter_cannot_do_is_refused_at_once(changes, message):
    with pytest.raises(SparseRMError, match=message):
        SparseRMTrainingConfig("model", **{"adapter_rank": 4} | changes)


def test_an_adapter_needs_a_second_prompt(world, tmp_path):
    rows = make_rows(20)
    for row in rows:
        row["prompt"] = rows[0]["prompt"]
    write_jsonl(tmp_path / "one.jsonl", rows)
    with pytest.raises(SparseRMError, match="there are too few prompts"):
        trainer_for(world, tmp_path / "model", tmp_path / "cache", tmp_path / "one.jsonl", evaluated=False).train()


@pytest.mark.parametrize("head_type", ["linear", "mlp"])
def test_training_starts_from_the_frozen_model(world, tmp_path, head_type):
    trainer = trainer_for(world, tmp_path / "model", tmp_path / "cache", head_type=head_type, adapter_rank=0)
    trainer.train()
    pairs, base, model = trainer.eval_pairs, copy.deepcopy(trainer.base_model), trainer.model
    affine = [tuple(p.detach().double().numpy() for p in m.parameters(recurse=False)) for m in model.score.modules()]
    layers = tuple(layer for layer in affine if layer)
    with_adapter = adapter.add_adapter(base, rank=2, seed=0).get_base_model()
    how = Pooling("response_mean", "rms")
    rewards = adapter_training.PairRewards(with_adapter, how, model.sae, model.directions.numpy(), layers, pairs)
    differences = rewards(torch.arange(20))[0].detach().numpy()
    assert np.allclose(differences, trainer.evaluation.margins["SparseRM"][:20], atol=1e-4)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_takes_an_adapter_and_merges_it(name):
    base = cut_base_model(tiny_causal_lm(name), 2).eval().requires_grad_(False)
    texts, how = [tokenized(ids) for ids in tiny_texts()], Pooling("mean", "rms")
    changed = adapter.add_adapter(copy.deepcopy(base), rank=2, seed=0)
    trained = [p for p in changed.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(std=0.3)

    def vectors(model):
        representer = Representer(model, None, texts, how)
        families = representer.families()
        members = [i for family in families for i in family.members]
        return pool_representations(*representer.run(families, members), "rms")

    before, during = vectors(base), vectors(changed.get_base_model())
    during.sum().backward()
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert (during - before).abs().max() > 0.01
    assert torch.allclose(vectors(changed.merge_and_unload()), during, atol=1e-4)


@pytest.mark.works_with("accelerate", "`sparserm train --adapter_rank` in two processes")
def test_two_processes_train_one_adapter(world, tmp_path):
    arguments = train_arguments(world, tmp_path / "model", adapter_rank=2, cache_dir=tmp_path / "cache", k=2)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*TWO_PROCESSES, "-m", "sparserm_hf.cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert weights_in(tmp_path / "cache").is_file() and (tmp_path / "model" / "config.json").is_file()


def test_the_command_says_what_the_adapter_changed(world, tmp_path, capsys):
    changes = {"adapter_rank": 2, "cache_dir": tmp_path / "cache", "k": 2, "eval_dataset": world / "test.jsonl"}
    assert main(train_arguments(world, tmp_path / "model", **changes)) == 0
    printed = capsys.readouterr().out
    assert "What the adapter changed" in printed and "claims of explanations that hold" in printed
    assert "s for the adapter" in printed
