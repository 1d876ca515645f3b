"""What an explanation says is true: orthogonal directions, claims under intervention, a world that was planted."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from tiny import D_MODEL, tiny_causal_lm, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from world import HOOK, make_rows, train_arguments, write_jsonl

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, explain
from sparserm_hf.cli.main import main
from sparserm_hf.evaluation.claims import CheckedClaims
from sparserm_hf.evaluation.controls import load_controls
from sparserm_hf.evaluation.evaluation import EVALUATION_FILE, Evaluation
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE
from sparserm_hf.training.directions import make_directions, random_directions
from sparserm_hf.training.latent_records import warn_of_purity
from sparserm_hf.training.selection import fewest_latents


def test_directions_are_orthonormal_and_none_are_closer():
    rng = np.random.default_rng(0)
    given, average = 3 * rng.standard_normal((6, 20)), rng.standard_normal(20)
    made = make_directions(given, "orthogonal", average)
    np.testing.assert_allclose(made.rows @ made.rows.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(made.rows @ average, 0, atol=1e-12)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(made.purities, (made.rows * unit).sum(1))
    along = average / np.linalg.norm(average)
    rest = unit - np.outer(unit @ along, along)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    closeness = (made.rows * rest).sum()
    for _ in range(50):  # any other orthonormal directions of the same space
        turned = np.linalg.qr(np.eye(6) + 0.1 * rng.standard_normal((6, 6)))[0].T @ made.rows
        assert (turned * rest).sum() < closeness
    raw = make_directions(given, "raw", average)
    assert raw.rows is given and (raw.purities == 1).all()


def test_directions_that_are_orthogonal_already_stay_what_they_are():
    made = make_directions(np.eye(5)[:3], "orthogonal", np.eye(5)[4])
    np.testing.assert_allclose(made.rows, np.eye(5)[:3], atol=1e-12)
    np.testing.assert_allclose(made.purities, 1)


@pytest.mark.parametrize(
    ("accuracies", "fewest"),
    [
        ({8: 0.60, 16: 0.788, 32: 0.78, 64: 0.80}, 16),  # the error is 0.0126
        ({8: 0.60, 16: 0.70, 32: 0.787, 64: 0.80}, 64),
        ({1: 0.80, 2: 0.80, 4: 0.80, 8: 0.79, 16: 0.70}, 8),  # of fewer than 8 latents less is true
        ({8: 1.0, 16: 1.0}, 8),
        ({1: 0.8, 2: 0.7, 4: 0.6}, 4),  # a small SAE has no more
    ],
)
def test_as_few_latents_as_are_within_one_standard_error_of_the_best(accuracies, fewest):
    assert fewest_latents(accuracies, 1000) == fewest


def test_low_purity_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_purity(np.array([7, 9]), np.array([0.9, 0.95]))
    assert not caplog.records
    warn_of_purity(np.array([7, 9, 11]), np.array([0.7, 0.95, 0.5]))
    assert "2 of 3 directions have a purity" in caplog.text and "that of latent 11, 0.50" in caplog.text


GOOD, BAD = ("w1", "w2"), "w3"


def planted_rows(count, seed):
    """Chosen responses have the words w1 and w2, rejected ones w3; all other words are chance."""
    rng = np.random.default_rng(seed)

    def words(*planted):
        return " ".join(rng.permutation([*planted, *(f"w{i}" for i in rng.integers(10, 60, 8))]))

    def side(*planted):
        return [{"role": "assistant", "content": words(*planted)}]

    return [
        {"prompt": [{"role": "user", "content": words()}], "chosen": side(*GOOD), "rejected": side(BAD, BAD)}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A trainer in a world whose residual stream is the token's embedding, and whose SAE has a latent for a word.

    Each of w1, w2 and w3 has a direction of its own, on which a latent fires; every token has a part of another size
    in the remaining dimensions, on which 61 latents fire at random.
    """
    tokenizer, generator = tiny_tokenizer(), torch.Generator().manual_seed(0)
    base = tiny_causal_lm()
    numbers = [tokenizer.convert_tokens_to_ids(word) for word in (*GOOD, BAD)]
    with torch.no_grad():
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = base.get_input_embeddings().weight
        embedding.copy_(torch.randn(embedding.shape, generator=generator))
        embedding[:, :3] = 0
        for i, number in enumerate(numbers):
            embedding[number, i] = 1.0
    sae = SparseAutoencoder(D_MODEL, 64, "jumprelu")
    directions = torch.randn(64, D_MODEL, generator=generator)
    directions[:, :3] = 0
    directions[:3] = torch.eye(D_MODEL)[:3]
    sae.W_dec.copy_(torch.nn.functional.normalize(directions, dim=1))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.threshold[:] = 0.5
    root = tmp_path_factory.mktemp("planted")
    args = SparseRMTrainingConfig(str(root / "model"), k=2, check_sae=False, cache_dir=str(root / "cache"))
    data = (Dataset.from_list(planted_rows(count, seed)) for count, seed in ((150, 0), (60, 1)))
    trainer = SparseRMTrainer(base, LoadedSAE(sae, {"hook_name": HOOK}), args, *data, tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.saved = root / "model"
    return trainer


def test_planted_directions_are_found_named_and_weighted(planted):
    config, weight = planted.model.config, planted.model.score.weight[0]
    assert config.latent_ids[:2] == [0, 1] and config.latent_ids[3] == 2
    for i, word in ((0, "w1"), (1, "w2"), (3, "w3")):
        assert config.latents[i].title == f'"{word}"'
        assert config.latents[i].name_score == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
        assert (weight[i] > 0) == (word in GOOD)
        assert config.latents[i].stability == 1.0 and config.latents[i].purity > 0.9
    assert planted.evaluation.metrics["SparseRM"].accuracy == 1.0


def test_every_claim_on_planted_directions_holds(planted):
    claims = []
    for row in planted_rows(20, seed=2):
        for side in ("chosen", "rejected"):
            explanation = explain(planted.model, planted.processing_class, row["prompt"] + row[side])
            total = explanation.base + sum(effect.contribution for effect in explanation.latents)
            assert total == pytest.approx(explanation.reward, abs=1e-4)
            claims += [effect.as_stated for effect in explanation.latents if effect.latent in (0, 1, 2)]
    assert len(claims) == 120 and all(claims)


def test_the_card_tells_the_share_of_claims_that_hold(planted):
    """The same share as of the explanations of these responses."""
    explained = [
        explain(planted.model, planted.processing_class, row["prompt"] + row[side])
        for row in planted_rows(60, seed=1)[:20]
        for side in ("chosen", "rejected")
    ]
    claims = [effect.as_stated for explanation in explained for effect in explanation.latents]
    assert planted.evaluation.claims == CheckedClaims(responses=40, claims=len(claims), held=sum(claims))
    assert 0 < sum(claims) < len(claims) == 160
    told = f"{100 * sum(claims) / 160:.1f}% of 160 claims hold"
    assert told in " ".join((planted.saved / "README.md").read_text().split())
    assert Evaluation.load(planted.saved / EVALUATION_FILE).claims == planted.evaluation.claims


def test_steering_the_planted_directions_away_leaves_little(planted):
    model, rows = planted.model, planted_rows(40, seed=3)
    texts = [planted.encoder(row["prompt"] + row[side]) for row in rows for side in ("chosen", "rejected")]

    def margins():
        with torch.no_grad():
            rewards = [model(torch.tensor([text.ids])).logits.item() for text in texts]
        return np.subtract(rewards[::2], rewards[1::2])

    before = margins()
    assert (before > 0).all()
    model.steer({0: 0.0, 1: 0.0, 2: 0.0})
    assert abs(margins().mean()) < 0.2 * before.mean()
    model.steer({0: 1.0, 1: 1.0, 2: 1.0})
    assert (margins() > 0).all()


HOOK_SCRIPT_TOLERANCE = 2e-4


@pytest.mark.parametrize("directions", ["orthogonal", "raw"])
@pytest.mark.parametrize("norm", ["rms", "none"])
def test_a_hook_of_ones_own_finds_the_same_effects(world, tmp_path, norm, directions):
    """Nothing of this package but the checkpoint: set the direction's part to its average in the last layer."""
    changes = {"representation_norm": norm, "directions": directions, "controls": False, "dtype": "float32"}
    assert main(train_arguments(world, tmp_path / "model", **changes)) == 0
    row = make_rows(1, seed=5)[0]
    source = write_jsonl(tmp_path / "rows.jsonl", [{"messages": row["prompt"] + row["chosen"]}])
    assert main(["explain", str(tmp_path / "model"), source, "--output", str(tmp_path / "out.jsonl")]) == 0
    explanation = json.loads((tmp_path / "out.jsonl").read_text())["explanation"]

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    words = len(row["chosen"][0]["content"].split())
    header = tokenizer.convert_tokens_to_ids("<|assistant|>")
    start = inputs["input_ids"][0].tolist().index(header) + 1
    changed: dict = {}

    def hook(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        direction, average = changed["direction"], changed["average"]
        unit = direction / direction.norm()
        response = hidden[0, start : start + words]
        size = response.pow(2).mean(-1, keepdim=True).sqrt() if norm == "rms" else torch.ones(words, 1)
        part = (response @ unit)[:, None]
        hidden[0, start : start + words] = response + (average / direction.norm() * size - part) * unit
        return output

    with torch.no_grad():
        plain = model(**inputs).logits.item()
    assert plain == pytest.approx(explanation["reward"], abs=1e-4)
    tried = [latent for latent in explanation["latents"] if latent["removed"] is not None]
    assert len(tried) == 10
    handle = model.model.layers[-1].register_forward_hook(hook)
    for latent in tried:
        i = model.config.latent_ids.index(latent["latent"])
        changed |= {"direction": model.directions[i], "average": model.feature_mean[i]}
        with torch.no_grad():
            effect = model(**inputs).logits.item() - plain
        assert effect == pytest.approx(latent["removed"], abs=HOOK_SCRIPT_TOLERANCE)
        assert latent["own"] == latent["contribution"]
        holds = abs(effect + latent["contribution"]) <= 0.1 * abs(latent["contribution"])
        assert holds == latent["as_stated"] or abs(effect) < 1e-3
    handle.remove()


def test_k_is_chosen_by_the_pairs_and_kept(world, tmp_path):
    assert main(train_arguments(world, tmp_path / "model", k=None, controls=False)) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["k_accuracies"]) == ["1", "2", "4", "8"], "16 a side would be more than there are dimensions"
    accuracies = {int(k): accuracy for k, accuracy in config["k_accuracies"].items()}
    assert len(config["latents"]) == 2 * fewest_latents(accuracies, 120)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| latents on either side | 1 | 2 | 4 | 8 |" in card
    assert main(["report", str(tmp_path / "model"), "--output", str(tmp_path / "report.html")]) == 0
    assert "Accuracy by number of latents" in (tmp_path / "report.html").read_text()


def test_controls_of_version_0_2_are_read(tmp_path):
    from safetensors.numpy import save_file

    described = {
        "dense representation": {"readings": [], "poolings": ["mean"], "length": False},
        "SAE activations": {"readings": ["mean_activation"], "poolings": [], "length": False},
        "length alone": {"readings": [], "poolings": [], "length": True},
    }
    tensors = {}
    for name in described:
        tensors |= {f"{name}/0/weight": np.ones((1, 2)), f"{name}/0/bias": np.zeros(1)}
    save_file(tensors, tmp_path / "controls.safetensors", metadata={"controls": json.dumps(described)})
    reads = {control.name: control.reads for control in load_controls(tmp_path / "controls.safetensors")}
    assert list(reads.values()) == ["representation", "activations", "length"]


def test_random_directions_are_of_unit_length():
    np.testing.assert_allclose(np.linalg.norm(random_directions(7, 5, 0), axis=1), 1)
