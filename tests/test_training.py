"""The recipe, the checkpoint it writes, and the command line around them."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from tiny import tiny_causal_lm, tiny_sae, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from world import HOOK, TWO_PROCESSES, make_rows, one_thread, save_sae, train_arguments, write_jsonl

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig
from sparserm_hf.base_models.gguf import unpacked_folder
from sparserm_hf.base_models.placement import cast_weights
from sparserm_hf.cli.main import main
from sparserm_hf.representations import collect
from sparserm_hf.representations.representer import Representer
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE
from sparserm_hf.scoring.reward_models import load_reward_model


def test_the_command_line_trains_saves_and_shows_the_controls(world, trained, capsys):
    assert main(train_arguments(world, world / "model", eval_dataset=world / "test.jsonl")) == 0
    shown = capsys.readouterr().out
    for row in (
        "SparseRM",
        "dense representation",
        "random directions",
        "SAE activations",
        "length alone",
        "95% interval",
    ):
        assert row in shown
    names = {file.name for file in trained.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    assert {
        "modeling_sparserm.py",
        "backbone_sparserm.py",
        "configuration_sparserm.py",
        "autoencoder_sparserm.py",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    card = (trained / "README.md").read_text()
    assert card.startswith("---\n") and "| dense representation |" in card and "60 held-out pairs" in card


def test_it_learns_and_evaluate_prints_the_same_as_training(world, trained, capsys, caplog):
    """To the last digit: casting the base model with `.to` once rounded its rotary frequencies, loading it did not.

    And out of the cache: the data type in the base model's configuration once made it another model.
    """
    caplog.set_level(logging.INFO)
    assert main(["evaluate", str(trained), str(world / "test.jsonl"), "--cache_dir", str(world / "cache")]) == 0
    evaluated = capsys.readouterr().out
    assert "All representations come from the cache" in caplog.text and "Computing" not in caplog.text
    assert main(train_arguments(world, world / "again", eval_dataset=world / "test.jsonl")) == 0
    in_training = capsys.readouterr().out
    rows = [line for line in evaluated.splitlines() if "│" in line]
    assert len(rows) == 10 and all(row in in_training for row in rows)
    accuracy = float(rows[0].split("│")[2])
    assert accuracy > 65, "the words decide, and even a random model sees them a little"


def test_same_seed_same_model_bit_for_bit(world, trained, tmp_path):
    assert (
        main(
            train_arguments(world, tmp_path / "fresh", eval_dataset=world / "test.jsonl", cache_dir=tmp_path / "cache")
        )
        == 0
    )
    for file in sorted(trained.iterdir()):
        if file.name != "README.md":  # it has the folder's name
            assert file.read_bytes() == (tmp_path / "fresh" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    "settings",
    [
        {"head_type": "mlp"},
        {"head_type": "mlp", "loss": "bce", "directions": "raw"},
        {"k": "auto", "loss": "bradley_terry"},
        {"k": "auto", "pooling": "mean", "representation_norm": "none"},
        {"pooling": "last", "loss": "bce"},
        {"slim": True, "k": "auto"},
        {"directions": "raw", "k": 20},
        {"dtype": "bfloat16"},
    ],
)
def test_what_is_saved_scores_as_what_was_trained(settings, world, tmp_path):
    """The folded weights, reloaded and run on whole texts, give the rewards that the fitted head gave."""
    args = SparseRMTrainingConfig(
        str(tmp_path / "out"),
        check_sae=False,
        cache_dir=str(world / "cache"),
        controls=False,
        **({"dtype": "float32", "k": 8} | settings),
    )
    rows = make_rows(40)
    trainer = SparseRMTrainer(
        str(world / "base"), str(world / "sae"), args, Dataset.from_list(make_rows(120)), Dataset.from_list(rows)
    )
    trainer.train()
    trainer.save_model()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False) for row in rows]
    texts += [tokenizer.apply_chat_template(row["prompt"] + row["rejected"], tokenize=False) for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        rewards = model(**batch).logits[:, 0].numpy()
    margins = trainer.evaluation.margins["SparseRM"]
    tolerance = 0.1 * margins.std() if settings.get("dtype") == "bfloat16" else 1e-3
    np.testing.assert_allclose(rewards[:40] - rewards[40:], margins, rtol=0, atol=tolerance)
    assert model.config.reward_std > 0 and abs(rewards.mean() - model.config.reward_mean) < 5 * model.config.reward_std
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainer.metrics["trainable_parameters"]


def test_a_model_in_memory_is_copied_not_cut(world, tmp_path):
    policy = tiny_causal_lm()
    args = SparseRMTrainingConfig(str(tmp_path / "out"), k=8, check_sae=False, cache_dir=str(tmp_path))
    trainer = SparseRMTrainer(
        policy,
        LoadedSAE(tiny_sae(), {"hook_name": HOOK}),
        args,
        Dataset.from_list(make_rows(30)),
        None,
        tiny_tokenizer(),
    )
    trainer.train()
    assert policy.config.num_hidden_layers == len(policy.model.layers) == 4
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_slim_is_small_loads_its_base_and_says_when_it_is_gone(world, trained, tmp_path):
    arguments = train_arguments(world, tmp_path / "slim", slim=True)
    assert main(arguments) == 0
    with safe_open(tmp_path / "slim" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {"directions", "feature_mean", "empty_features", "score.weight", "score.bias"}
    slim, full = (AutoModelForSequenceClassification.from_pretrained(path) for path in (tmp_path / "slim", trained))
    ids = torch.tensor([[3, 9, 10, 5, 4, 20, 21, 5]])
    torch.testing.assert_close(slim(ids, torch.ones_like(ids)).logits, full(ids, torch.ones_like(ids)).logits)
    assert not slim.training and slim.num_parameters(only_trainable=True) == full.num_parameters(only_trainable=True)
    config = json.loads((tmp_path / "slim" / "config.json").read_text())
    (tmp_path / "slim" / "config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(OSError, match=r"slim: it needs its base model .*gone.*base_model_name_or_path="):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "slim")
    moved = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "slim", base_model_name_or_path=str(world / "base")
    )
    torch.testing.assert_close(moved(ids, torch.ones_like(ids)).logits, full(ids, torch.ones_like(ids)).logits)


def test_a_slim_checkpoint_of_a_model_in_memory_is_refused(tmp_path):
    """It would load the weights that lie where the model once came from, not those that it was trained with."""
    args = SparseRMTrainingConfig(str(tmp_path / "out"), slim=True)
    with pytest.raises(SparseRMError, match="given in memory"):
        SparseRMTrainer(tiny_causal_lm(), tiny_sae(), args, Dataset.from_list(make_rows(3)), None, tiny_tokenizer())


@pytest.mark.parametrize(
    ("published", "run", "saved"),
    [
        (torch.bfloat16, "float32", torch.bfloat16),  # without loss
        (torch.float32, "bfloat16", torch.bfloat16),  # what was run is what is saved
        (torch.float16, "bfloat16", torch.bfloat16),  # back in float16 it would be neither the one nor the other
        (torch.float32, "float32", torch.float32),
    ],
)
def test_what_was_run_is_what_is_saved(published, run, saved, tmp_path):
    args = SparseRMTrainingConfig(
        str(tmp_path / "out"), k=8, check_sae=False, cache_dir=str(tmp_path), dtype=run, controls=False
    )
    sae = LoadedSAE(tiny_sae(), {"hook_name": HOOK})
    data = Dataset.from_list(make_rows(20))
    trainer = SparseRMTrainer(cast_weights(tiny_causal_lm(), published), sae, args, data, data, tiny_tokenizer())
    trainer.train()
    trainer.save_model()
    passes = [path for path in tmp_path.iterdir() if path.name != "out"]
    assert len(passes) == 2, "one pass over the texts and one over the attacks on the chat template, no other"
    # Under transformers 4 the base model once came back in the type that it was published in: no such save succeeded.
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.model.dtype == saved
    expected = cut_base_model(tiny_causal_lm(), 2).layers[1].mlp.up_proj.weight.to(published).to(saved)
    assert torch.equal(loaded.model.layers[1].mlp.up_proj.weight, expected)
    # Scoring runs as training ran: trained in float32, it was scored in bfloat16 where the CPU lacks it.
    scoring, _ = load_reward_model(str(tmp_path / "out"), torch.device("cpu"))
    assert scoring.model.dtype == getattr(torch, run) and scoring.config.run_dtype == run
    label = f"{loaded.config.latents[0].id}=mine"
    assert main(["edit", str(tmp_path / "out"), "--label", label, "--output_dir", str(tmp_path / "edited")]) == 0
    edited = AutoModelForSequenceClassification.from_pretrained(tmp_path / "edited", dtype="auto")
    assert edited.model.dtype == saved


def cut_off(folder, copy, name="model.safetensors"):
    """A copy of a folder in which one file lacks its second half."""
    shutil.copytree(folder, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[: (copy / name).stat().st_size // 2])
    return copy


def bad_input_cases(world, tmp):
    """Name: arguments, and what the one sentence must say."""
    broken_base = tmp / "broken-base"
    model = tiny_causal_lm()
    model.get_decoder().embed_tokens.weight.data.fill_(float("nan"))
    model.save_pretrained(broken_base)
    save_tokenizer(tiny_tokenizer(), broken_base)
    no_tokens = tmp / "no-pad"
    tiny_causal_lm().save_pretrained(no_tokens)
    bare = tiny_tokenizer(pad_token=None)
    bare.eos_token = None
    save_tokenizer(bare, no_tokens)
    no_tokenizer = tmp / "no-tokenizer"
    tiny_causal_lm().save_pretrained(no_tokenizer)
    pickled = tmp / "pickled"
    tiny_causal_lm().save_pretrained(pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    save_tokenizer(tiny_tokenizer(), pickled)
    other = tmp / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    same = [row | {"rejected": row["chosen"]} for row in make_rows(3)]
    deep = save_sae(tmp / "deep", "blocks.9.hook_resid_post")
    write_jsonl(tmp / "missing.jsonl", [{"chosen": "a", "answer": "b"}])
    (tmp / "empty.jsonl").write_text("")
    (tmp / "broken.jsonl").write_text(json.dumps(make_rows(1)[0]) + "\n{oops\n")

    def train(**changes):
        return train_arguments(world, tmp / "out", **changes)

    return {
        "missing column": (train(dataset=tmp / "missing.jsonl"), "column `rejected` is missing"),
        "empty file": (train(dataset=tmp / "empty.jsonl"), "is empty"),
        "broken line": (train(dataset=tmp / "broken.jsonl"), "line 2 is broken JSON"),
        "identical pairs": (
            train(dataset=write_jsonl(tmp / "same.jsonl", same)),
            "3 chosen and rejected are identical",
        ),
        "one pair": (train(dataset=write_jsonl(tmp / "one.jsonl", make_rows(1))), "at least 2 are needed"),
        "K too large": (train(k=40), "K = 40 asks for 80 latents, but the SAE has 64"),
        "unknown tracker": (train(report_to="carrier-pigeon"), "report_to names 'carrier-pigeon'"),
        "no tokenizer": (train(model=no_tokenizer), "The tokenizer of .* cannot be loaded"),
        "K too large to be orthogonal": (
            train(k=16),
            "K = 16 asks for 32 orthogonal directions, .* has 32 dimensions: choose K up to 15, or --directions raw",
        ),
        "K no number": (train(k="many"), "k is 'many', but must be a number of latents, or auto"),
        "K zero": (train(k=0), "k is 0, but must be at least 1"),
        "wrong width": (train(sae=save_sae(tmp / "wide", sae=tiny_sae(d_in=48))), "SAE encodes vectors of width 48"),
        "layer out of range": (train(sae=deep), "Layer 10 is out of range.*layers 1 to 4"),
        "layer against the SAE": (train(layer=3), "--layer 3 does not fit the SAE"),
        "wrong hook": (
            train(sae=save_sae(tmp / "mlp", "blocks.1.hook_mlp_out")),
            "blocks.1.hook_mlp_out.*residual stream",
        ),
        "no hook, no layer": (train(sae=save_sae(tmp / "bare", None)), "name it with --layer"),
        "no SAE known": (train(sae=None), "No SAE is known for the base model"),
        "no pad token": (train(model=no_tokens), "neither a pad token nor an end-of-text token"),
        "NaN": (train(model=broken_base), "is not finite"),
        "other folder": (train(output_dir=other), "holds something else than a SparseRM"),
        "output is a file": (train(output_dir=tmp / "one.jsonl"), "is a file: name a folder"),
        "no model": (train(model=tmp / "nowhere"), "cannot be loaded"),
        "a pickle": (train(model=pickled), "no file named model.safetensors"),
        "a bad margin": (
            train(
                loss="margin",
                dataset=write_jsonl(tmp / "margin.jsonl", [make_rows(1)[0] | {"margin": -3}, *make_rows(9)]),
            ),
            "margins must be above -gamma",
        ),
        "a base cut off": (train(model=cut_off(world / "base", tmp / "cut-base")), "base model .* cannot be loaded"),
        "a config cut off": (
            train(model=cut_off(world / "base", tmp / "cut-config", "config.json")),
            "base model .* cannot be loaded",
        ),
        "a reward model cut off": (
            ["score", str(cut_off(world / "model", tmp / "cut-model")), str(world / "test.jsonl")],
            "reward model .* cannot be loaded",
        ),
        "a slim one for others without its base": (
            train(slim=True, push_to_hub=True),
            "is a local folder",
        ),
        "a broken GGUF": (train(model=write_jsonl(tmp / "broken.gguf", [{}])), "cannot be read as a GGUF model"),
        "an empty text": (
            ["score", str(world / "model"), write_jsonl(tmp / "blank.jsonl", [*make_rows(2), {"text": ""}])],
            r"blank\.jsonl, row 3 has an empty text",
        ),
        "a useless length": (
            ["score", str(world / "model"), str(world / "test.jsonl"), "--max_length", "0"],
            "max_length is 0, but must be at least 8",
        ),
        "not a model": (train(model=other), "is not a model folder"),
        "no SAE folder": (train(sae=other), "must hold one of the files"),
        "unknown option": (train(learning_rate=1), "unrecognized arguments: --learning_rate 1"),
        "unknown choice": (train(pooling="max"), "invalid choice: 'max'"),
        "no such reward model": (["score", str(tmp / "nowhere"), str(world / "test.jsonl")], "cannot be loaded"),
        "not a reward model": (
            ["score", str(world / "base"), str(world / "test.jsonl")],
            "cannot be loaded: it is a llama, not a SparseRM",
        ),
        "nothing to score": (["score", str(world / "model"), str(tmp / "missing.jsonl")], "it needs either `text`"),
        "no rows to score": (
            ["score", str(world / "model"), str(tmp / "none.jsonl")],
            "There is no file|No such file",
        ),
        "GGUF is gone": (train(model=tmp / "none.gguf"), "There is no GGUF file"),
    }


def test_bad_input_gets_one_sentence_and_exit_code_2(world, trained, tmp_path, capsys):
    for name, (arguments, message) in bad_input_cases(world, tmp_path).items():
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit:  # argparse
            code = exit.code
        error = capsys.readouterr().err
        last = error.strip().splitlines()[-1]
        assert code == 2, name
        assert "error: " in last and re.search(message, last), f"{name}: {last}"
        assert "Traceback" not in error, name
        assert not (tmp_path / "out").exists(), f"{name}: something was written"
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_a_checkpoint_without_its_sae_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("sae.")}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 5 of its tensors, among them 'sae"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "copy")


def test_gguf_files_of_one_name_and_size_are_told_apart(tmp_path):
    """llama.cpp calls them all alike, and a fine-tune is as large as its base: one was taken for the other."""
    paths = [tmp_path / name / "ggml-model-Q4_K_M.gguf" for name in ("one", "other")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("x")
    folders = {unpacked_folder(path, tmp_path) for path in paths}
    os.utime(paths[0], ns=(1, 1))
    assert len(folders | {unpacked_folder(paths[0], tmp_path)}) == 3


KILLING = """
import os, signal, sys
from sparserm_hf.representations import collect
from sparserm_hf.cli import main
collect.SHARD_TOKENS = 400
plan = collect.plan_batches
collect.plan_batches = lambda lengths, max_tokens: plan(lengths, 200)
real, calls = collect.Representer.compute_shard, []
def compute(*args):
    calls.append(1)
    return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 4 else real(*args)
collect.Representer.compute_shard = compute
main(sys.argv[1:])
"""


@pytest.fixture
def computed(monkeypatch):
    """A 1 for each shard that this process computes."""
    real, calls = Representer.compute_shard, []
    monkeypatch.setattr(Representer, "compute_shard", lambda *args: calls.append(1) or real(*args))
    return calls


def test_a_killed_run_resumes_to_the_same_bits(world, tmp_path, monkeypatch, computed):
    """SIGKILL, in the middle of the representations: the next run ends with what an undisturbed one ends with."""
    plan = collect.plan_batches
    monkeypatch.setattr(collect, "SHARD_TOKENS", 400)
    monkeypatch.setattr(collect, "plan_batches", lambda lengths, max_tokens: plan(lengths, 200))

    def arguments(name):
        changes = {"cache_dir": tmp_path / f"cache-{name}", "eval_dataset": world / "test.jsonl"}
        return train_arguments(world, tmp_path / name, **changes)

    assert main(arguments("a")) == 0
    undisturbed = len(computed)
    killed = subprocess.run([sys.executable, "-c", KILLING, *arguments("b")], capture_output=True, text=True)
    assert killed.returncode == -9 and not (tmp_path / "b").exists(), killed.stderr
    assert main(arguments("b")) == 0
    assert len(computed) == 2 * undisturbed - 3, "the three finished shards are not computed again"
    for file in sorted((tmp_path / "a").iterdir()):
        if file.name != "README.md":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_several_processes_share_the_work_and_agree_to_the_bit(world, tmp_path, monkeypatch, computed):
    """It once ran under a launcher that starts a single process where there is no GPU, and passed."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from sparserm_hf.representations import collect\n"
        "from sparserm_hf.cli import main\n"
        "collect.SHARD_TOKENS = 200\n"
        "collect.batch_tokens = lambda device: 200\n"
        "real = collect.Representer.compute_shard\n"
        "def logged(*args):\n"
        "    with Path(sys.argv[1], os.environ['RANK']).open('a') as file:\n"
        "        file.write('x')\n"
        "    return real(*args)\n"
        "collect.Representer.compute_shard = logged\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    one, two = (
        train_arguments(world, tmp_path / name, cache_dir=tmp_path / f"{name}-cache") for name in ("one", "two")
    )
    alike = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun sets it: with more, float32 sums in another order
    command = [*TWO_PROCESSES, script, tmp_path, *two]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=alike)
    assert result.returncode == 0, result.stderr
    monkeypatch.setattr(collect, "SHARD_TOKENS", 200)
    monkeypatch.setattr(collect, "batch_tokens", lambda device: 200)
    with one_thread():
        assert main(one) == 0
    shares = [len((tmp_path / rank).read_text()) for rank in ("0", "1")]
    assert sum(shares) == len(computed) and min(shares) == len(computed) // 2 > 3, "each shard is computed once"
    alone, shared = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert alone.keys() == shared.keys() and all(alone[name].equal(shared[name]) for name in alone)


def test_metrics_reach_the_trackers(world, tmp_path):
    pytest.importorskip("tensorboard")
    args = SparseRMTrainingConfig(
        str(tmp_path / "out"), k=8, check_sae=False, cache_dir=str(world / "cache"), report_to="tensorboard"
    )
    trainer = SparseRMTrainer(str(world / "base"), str(world / "sae"), args, Dataset.from_list(make_rows(120)))
    trainer.train()
    trainer.save_model()
    assert list((tmp_path / "out" / "runs").rglob("events.out.*"))


def test_push_to_hub_uploads_the_checkpoint(world, tmp_path, monkeypatch):
    from huggingface_hub import CommitInfo, HfApi, RepoUrl

    uploads = {}

    def create_repo(self, repo_id, **kwargs):
        uploads["repo"] = (repo_id, kwargs)
        return RepoUrl("https://huggingface.co/me/rm")

    def upload_folder(self, *, folder_path, repo_id, **kwargs):
        uploads["files"] = set(kwargs["allow_patterns"])
        return CommitInfo(
            commit_url="https://huggingface.co/me/rm/commit/abc", commit_message="", commit_description="", oid="abc"
        )

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "list_repo_files", lambda *_, **__: [])
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    args = SparseRMTrainingConfig(
        str(tmp_path / "out"),
        k=8,
        check_sae=False,
        cache_dir=str(world / "cache"),
        hub_model_id="me/rm",
        hub_private_repo=True,
    )
    trainer = SparseRMTrainer(str(world / "base"), str(world / "sae"), args, Dataset.from_list(make_rows(120)))
    trainer.train()
    trainer.save_model()
    assert not uploads
    assert trainer.push_to_hub() == "https://huggingface.co/me/rm/commit/abc"
    assert uploads["repo"] == ("me/rm", {"private": True, "exist_ok": True})
    assert {"config.json", "model.safetensors", "modeling_sparserm.py", "tokenizer.json", "README.md"} <= uploads[
        "files"
    ]
    uploads.clear()
    trainer.args.push_to_hub = True  # as for the Trainer of transformers, saving pushes then
    trainer.save_model()
    assert uploads["repo"][0] == "me/rm"


def test_what_is_given_stays_as_it_was_and_no_path_is_published(world, tmp_path):
    """The tokenizer came back with another pad token and a limit of 1,024 tokens, for whatever used it next."""
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    limit, side = tokenizer.model_max_length, tokenizer.truncation_side
    args = SparseRMTrainingConfig(
        str(tmp_path / "out"), k=8, check_sae=False, controls=False, cache_dir=str(world / "cache")
    )
    rows = Dataset.from_list(make_rows(120))
    trainer = SparseRMTrainer(str(world / "base"), str(world / "sae"), args, rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    assert trainer.processing_class.model_max_length != limit
    assert (tokenizer.model_max_length, tokenizer.truncation_side) == (limit, side)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["base_model_name_or_path"] == "base"
    assert str(world / "base") not in "".join(file.read_text() for file in (tmp_path / "out").glob("*.json"))


def test_stability_counts_the_folds_that_select_a_latent_and_is_not_made_up(world, trained, tmp_path):
    latents = load_reward_model(str(trained), torch.device("cpu"))[0].config.latents
    stabilities = [latent.stability for latent in latents]
    assert len(stabilities) == 16 and set(stabilities) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0} and max(stabilities) == 1.0
    one_prompt = [row | {"prompt": make_rows(1)[0]["prompt"]} for row in make_rows(30)]
    dataset = write_jsonl(tmp_path / "one.jsonl", one_prompt)
    assert main(train_arguments(world, tmp_path / "out", dataset=dataset)) == 0
    config = load_reward_model(str(tmp_path / "out"), torch.device("cpu"))[0].config
    assert [latent.stability for latent in config.latents] == [None] * 16
