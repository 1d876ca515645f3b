"""Training of an SAE on a tiny model: it learns, sae-lens loads it too, and a killed run resumes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from tiny import BOS, VOCAB, tiny_causal_lm, tiny_tokenizer

from sparserm_hf.cli.main import main
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.loaded_sae import load_sae
from sparserm_hf.sae.training import recipe
from sparserm_hf.sae.training.sae_config import SAETrainingConfig
from sparserm_hf.sae.training.sae_lens_trainer import BatchTopK
from sparserm_hf.sae.training.training_loop import train_and_save
from sparserm_hf.sae.training.training_tokens import ResidualTokens, shuffled_tokens

sae_lens = pytest.importorskip("sae_lens")

METADATA = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}
SETTINGS = {"d_sae": 128, "k": 8, "step_tokens": 256, "buffer_tokens": 2048, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(0)
    return [[BOS, *torch.randint(6, VOCAB, (30,), generator=generator).tolist()] for _ in range(200)]


@pytest.fixture(scope="module")
def base_model():
    """A cut GPT-NeoX, the architecture of Pythia."""
    return cut_base_model(tiny_causal_lm("gpt_neox"), 2)


@pytest.mark.parametrize(
    ("architecture", "saved_as", "steps"),
    [("batchtopk", "jumprelu", 200), ("topk", "topk", 200), ("jumprelu", "jumprelu", 500)],
)
def test_it_learns_and_equals_what_sae_lens_reads(architecture, saved_as, steps, base_model, texts, tmp_path):
    settings = SETTINGS | {"architecture": architecture}
    untrained = train_and_save(
        base_model, texts, tmp_path / "short", SAETrainingConfig(total_tokens=256, **settings), METADATA
    )
    quality = train_and_save(
        base_model, texts, tmp_path / "long", SAETrainingConfig(total_tokens=256 * steps, **settings), METADATA
    )
    assert 1 - quality.explained_variance < 0.6 * (1 - untrained.explained_variance) and 4 < quality.l0 < 16
    loaded = load_sae(str(tmp_path / "long"))
    reference = sae_lens.SAE.load_from_disk(tmp_path / "long", dtype="float32")
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)) * 9
    with torch.no_grad():
        torch.testing.assert_close(loaded.autoencoder.encode(x), reference.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.autoencoder(x), reference(x), rtol=1e-5, atol=1e-4)
    assert loaded.layer == 2 and loaded.autoencoder.architecture == saved_as
    metadata = json.loads((tmp_path / "long" / "cfg.json").read_text())["metadata"]
    assert (
        metadata["tokens_trained_on"] == 256 * steps and metadata["explained_variance"] == quality.explained_variance
    )
    assert not (tmp_path / "long" / "checkpoint").exists(), "the checkpoint goes when the SAE is there"


def kill_at(position, monkeypatch):
    """Interrupt every run at a position of its tokens."""
    read = ResidualTokens.__call__

    def killed_later(self, asked):
        if asked >= position:
            raise KeyboardInterrupt
        return read(self, asked)

    monkeypatch.setattr(ResidualTokens, "__call__", killed_later)


def test_a_killed_run_ends_with_the_same_bits(base_model, texts, tmp_path, monkeypatch):
    config = SAETrainingConfig(total_tokens=20_000, checkpoint_seconds=0, **SETTINGS)
    monkeypatch.setattr(
        "sparserm_hf.sae.training.training_tokens.batch_tokens", lambda device: 1000
    )  # several batches a buffer
    train_and_save(base_model, texts, tmp_path / "whole", config, METADATA)
    read = ResidualTokens.__call__
    kill_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_and_save(base_model, texts, tmp_path / "killed", config, METADATA)
    assert not (tmp_path / "killed" / "cfg.json").exists(), "nothing half-trained looks like an SAE"
    (tmp_path / "killed" / "checkpoint" / ".9-half-written").mkdir()  # what a kill leaves that hits the writing
    positions = []
    monkeypatch.setattr(ResidualTokens, "__call__", lambda self, p: (positions.append(p), read(self, p))[1])
    train_and_save(base_model, texts, tmp_path / "killed", config, METADATA)
    assert positions[1] > 0, "it goes on, but for the look at the width of the first batch"
    whole, resumed = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "cfg.json").read_text() == (tmp_path / "killed" / "cfg.json").read_text()


def test_a_checkpoint_of_another_run_is_not_gone_on_with(base_model, texts, tmp_path, monkeypatch):
    config = SAETrainingConfig(total_tokens=20_000, checkpoint_seconds=0, **SETTINGS)
    kill_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_and_save(base_model, texts, tmp_path / "sae", config, METADATA)
    other = SAETrainingConfig(total_tokens=20_000, **SETTINGS | {"k": 9})
    with pytest.raises(SparseRMError, match=r"holds a run with another k \(8, not 9\): remove that folder"):
        train_and_save(base_model, texts, tmp_path / "sae", other, METADATA)
    with pytest.raises(SparseRMError, match="holds a run with another base model"):
        train_and_save(cut_base_model(tiny_causal_lm(), 2), texts, tmp_path / "sae", config, METADATA)
    with pytest.raises(SparseRMError, match="holds a run with another set of texts"):
        train_and_save(base_model, texts[::-1], tmp_path / "sae", config, METADATA)
    (state,) = (tmp_path / "sae" / "checkpoint").glob("*/trainer_state.pt")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(SparseRMError, match=r"is broken \(.*\): remove that folder"):
        train_and_save(base_model, texts, tmp_path / "sae", config, METADATA)


def test_a_short_run_too_is_saved_with_a_threshold_that_lets_k_latents_fire(base_model, texts, tmp_path):
    """The running mean of sae-lens starts at zero: after 16 steps it let seven times as many latents fire."""
    config = SAETrainingConfig(total_tokens=16 * 256, **SETTINGS)
    assert 6 < train_and_save(base_model, texts, tmp_path / "sae", config, METADATA).l0 < 10


def test_a_base_model_that_gives_no_numbers_is_told_at_once(texts, tmp_path):
    base_model = cut_base_model(tiny_causal_lm(), 2)
    base_model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(SparseRMError, match="not finite in float32"):
        train_and_save(base_model, texts, tmp_path / "sae", SAETrainingConfig(total_tokens=512, **SETTINGS), METADATA)


def test_too_little_text_is_told_before_training(base_model, texts, tmp_path):
    config = SAETrainingConfig(total_tokens=512, **SETTINGS)
    for few in (texts[:1], texts[:3], [text[:2] for text in texts[:40]]):
        with pytest.raises(SparseRMError, match="are not enough to train and measure an SAE"):
            train_and_save(base_model, few, tmp_path / "sae", config, METADATA)
    assert not (tmp_path / "sae").exists()


def test_sinks_stay_out_and_every_token_has_the_same_norm(texts):
    """Sinks carry nearly all of the variance: with them, explained variance looks perfect and little is learnt."""
    base_model = cut_base_model(tiny_causal_lm(), 2)
    base_model.layers[1].register_forward_hook(
        lambda m, i, o: o * torch.where(torch.arange(o.shape[1]) == 5, 100.0, 1.0)[:, None]
    )
    tokens = ResidualTokens(base_model, texts, sink_ratio=3.0, max_tokens=310)(0)
    assert len(tokens) == 10 * (31 - 2), "of each text of 31 tokens the first and the sink in the middle are left out"
    torch.testing.assert_close(tokens.norm(dim=-1), torch.full((len(tokens),), 32**0.5))


def test_the_buffer_mixes_whole_batches_and_drops_what_does_not_fill_a_step():
    def read(position):
        return torch.full((3, 1), float(position))

    tokens, position = shuffled_tokens(read, 5, buffer_tokens=7, step_tokens=4, seed=0)
    assert position == 8 and tokens.shape == (8, 1) and set(tokens.flatten().tolist()) == {5.0, 6.0, 7.0}
    assert torch.equal(tokens, shuffled_tokens(read, 5, buffer_tokens=7, step_tokens=4, seed=0)[0])


def test_batch_topk_equals_that_of_sae_lens_whatever_the_last_step_was_like():
    from sae_lens.saes.batchtopk_sae import BatchTopK as Reference

    ours, reference = BatchTopK(3), Reference(3)
    for scale in (1.0, 5.0, 0.01, 1.0):
        x = (scale * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))).requires_grad_()
        (gradient,) = torch.autograd.grad(ours(x).pow(2).sum(), x)
        (expected,) = torch.autograd.grad(reference(x).pow(2).sum(), x)
        assert torch.equal(ours(x), reference(x)) and torch.equal(gradient, expected)
    assert torch.equal(ours(-x.abs()), torch.zeros_like(x)), "none of them is above zero"


@pytest.mark.parametrize(
    "command", [[], ["train"], ["score"], ["evaluate"], ["demo"], ["sae", "train"], ["sae", "check"]]
)
def test_every_command_has_help(command, capsys):
    """argparse takes a percent sign in a help text for a format, and fails."""
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0 and "--help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"total_tokens": 10}, "must be at least step_tokens"),
        ({"step_tokens": 1}, "step_tokens is 1"),
        ({"architecture": "gated"}, "must be one of batchtopk, topk, jumprelu"),
        ({"sink_ratio": 1.0}, "sink_ratio above 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SparseRMError, match=message):
        SAETrainingConfig(**settings)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A GPT-2 with its tokenizer in a folder, and a file of texts."""
    folder = tmp_path_factory.mktemp("world")
    tiny_causal_lm("gpt2").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2} w{i + 3} w{i + 5} w{i + 7}"} for i in range(60)]
    rows[7]["completion"] = "w1 w2 " * 100  # longer than the base model has positions
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(world, output, *more):
    settings = [
        "--d_sae",
        "64",
        "--k",
        "4",
        "--total_tokens",
        "2000",
        "--step_tokens",
        "200",
        "--buffer_tokens",
        "500",
    ]
    names = ["--model", str(world / "base"), "--dataset", str(world / "texts.jsonl"), "--output_dir", str(output)]
    return ["sae", "train", *names, "--layer", "2", *settings, *more]


def test_the_command_trains_an_sae_that_comes_with_a_card(world, tmp_path, capsys):
    assert main(arguments(world, tmp_path / "sae")) == 0
    assert "explained variance" in capsys.readouterr().out
    loaded = load_sae(str(tmp_path / "sae"))
    assert loaded.layer == 2 and loaded.autoencoder.d_sae == 64 and loaded.source["model_name"] == "base"
    card = (tmp_path / "sae" / "README.md").read_text()
    assert 'SAE.load_from_disk("sae")' in card and "--sae sae ..." in card
    assert "library_name: saelens" in card and "{{" not in card and str(tmp_path) not in card
    cfg = (tmp_path / "sae" / "cfg.json").read_text()
    assert str(tmp_path) not in cfg and json.loads(cfg)["metadata"]["dataset_path"] == "texts.jsonl"


def test_what_cannot_be_trained_gets_one_sentence(world, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for more, message in (
        (["--layer", "9"], "layer"),
        (["--k", "65"], "k is 65"),
        (["--dataset", str(tmp_path / "missing.jsonl")], "missing.jsonl"),
        (["--dataset", str(tmp_path / "empty.jsonl")], "There is no text in"),
        (["--output_dir", str(tmp_path / "other")], "holds something else than an SAE"),
    ):
        assert main([*arguments(world, tmp_path / "new"), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("sparserm: error: ") and message in error
        assert not (tmp_path / "new").exists()


def test_it_is_pushed_where_sae_lens_looks_for_it(world, tmp_path, monkeypatch):
    pushed = {}

    class Api:
        def create_repo(self, repo_id, **kwargs):
            pushed.update(kwargs)
            return type("Repo", (), {"repo_id": f"somebody/{repo_id}"})

        def create_commit(self, repo_id, operations, commit_message):
            pushed.update(repo=repo_id, files=sorted(operation.path_in_repo for operation in operations))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr(recipe, "HfApi", Api)
    assert main(arguments(world, tmp_path / "my-sae", "--push_to_hub", "--hub_private_repo")) == 0
    hook = "blocks.1.hook_resid_post"
    assert f'SAE.from_pretrained("somebody/my-sae", "{hook}")' in (tmp_path / "my-sae" / "README.md").read_text()
    assert pushed == {
        "private": True,
        "exist_ok": True,
        "repo": "somebody/my-sae",
        "files": ["README.md", f"{hook}/cfg.json", f"{hook}/sae_weights.safetensors"],
    }
