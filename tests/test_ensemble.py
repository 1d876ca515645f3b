"""An ensemble of heads: it knows where the training pairs leave a reward open, and every part shows it."""

import numpy as np
import pytest
import torch
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from transformers import AutoModelForSequenceClassification
from world import make_rows, train_arguments

from sparserm_hf import (
    PairIndices,
    RepresentedTexts,
    RewardHeadConfig,
    SparseRMError,
    SparseRMReward,
    combine,
    edit_model,
    fit_reward_head,
    load_preferences,
    load_reward_model,
    score_rows,
)
from sparserm_hf.cli.main import main
from sparserm_hf.evaluation.claims import check_claims
from sparserm_hf.evaluation.saved_models import SavedRewardModel
from sparserm_hf.explanations.explained_pairs import explain_pair
from sparserm_hf.explanations.explained_rows import explain_rows
from sparserm_hf.integrations.stock import check_exact
from sparserm_hf.monitoring.scored_responses import score_for_drift
from sparserm_hf.training.ensemble import fit_ensemble

CPU = torch.device("cpu")
PAIRS = make_rows(6, seed=9)


@pytest.fixture(scope="module")
def uncertain(world, tmp_path_factory):
    """The folder of a reward model with an ensemble."""
    folder = tmp_path_factory.mktemp("uncertain") / "model"
    assert main(train_arguments(world, folder, ensemble=20, eval_dataset=world / "test.jsonl")) == 0
    return str(folder)


def planted(prompts, noise, seed=0):
    """Vectors of pairs with a known linear reward, and labels as the Bradley-Terry model draws them."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((2 * prompts, 8))
    weight = np.array([1.5, -1.0, 0.5, 0, 0, 0, 0, 0]) / noise
    first, second = np.arange(prompts), np.arange(prompts, 2 * prompts)
    wins = rng.random(prompts) < 1 / (1 + np.exp(-(vectors[first] - vectors[second]) @ weight))
    return vectors, PairIndices(np.where(wins, first, second), np.where(wins, second, first), np.arange(prompts))


def ensemble_of(vectors, pairs, heads=200):
    return fit_ensemble(vectors, pairs, pairs.objective("bradley_terry", 1.0), 1e-4, heads, seed=0)


def test_the_spread_is_that_of_the_maximum_likelihood_estimate():
    """The bootstrap's covariance is the inverse of the Fisher information, known for logistic regression."""
    vectors, pairs = planted(2000, noise=1.0)
    fitted = ensemble_of(vectors, pairs)
    differences = vectors[pairs.chosen] - vectors[pairs.rejected]
    p = 1 / (1 + np.exp(-differences @ fitted.weights.mean(0)))
    information = (differences * (p * (1 - p))[:, None]).T @ differences
    expected = np.sqrt(np.diag(np.linalg.inv(information)))
    np.testing.assert_allclose(fitted.weights.std(0, ddof=1), expected, rtol=0.25)
    np.testing.assert_allclose(fitted.weights @ vectors.mean(0) + fitted.biases, 0, atol=1e-12)


def test_fewer_pairs_leave_more_open_and_so_does_a_text_unlike_those_of_training():
    few, many = (ensemble_of(*planted(count, noise=1.0), heads=30) for count in (100, 2000))
    here, far = np.eye(8)[3], 10 * np.eye(8)[3]

    def deviation(ensemble, vector):
        return (ensemble.weights @ vector + ensemble.biases).std()

    assert deviation(few, here) > 2 * deviation(many, here)
    assert deviation(few, far) > 5 * deviation(few, here)


def test_pairs_of_one_prompt_are_drawn_together_and_the_draw_is_repeatable():
    vectors, pairs = planted(40, noise=1.0)
    doubled = PairIndices(*(np.tile(x, 2) for x in (pairs.chosen, pairs.rejected, pairs.groups)))
    once, twice = ensemble_of(vectors, pairs, 5), ensemble_of(vectors, doubled, 5)
    np.testing.assert_allclose(once.weights, twice.weights, atol=1e-4)  # a prompt's two pairs count as one
    assert (ensemble_of(vectors, pairs, 5).weights == once.weights).all()


def test_vectors_of_your_own_get_an_ensemble_too():
    rng = np.random.default_rng(0)
    vectors, decoder = rng.normal(size=(80, 6)), np.eye(6)[:4]
    vectors[:40, 0] += 3
    vectors[40:, 1] += 3
    texts = RepresentedTexts(vectors, np.maximum(vectors @ decoder.T - 1, 0), decoder)
    pairs = PairIndices(np.arange(40), np.arange(40, 80), np.arange(40))
    assert fit_reward_head(texts, pairs, RewardHeadConfig(k=1, ensemble=3)).ensemble.weights.shape == (3, 2)
    assert fit_reward_head(texts, pairs, RewardHeadConfig(k=1)).ensemble is None
    with pytest.raises(SparseRMError, match=r"there are only 2: add prompts until there are at least 10"):
        fit_reward_head(
            texts, PairIndices(pairs.chosen, pairs.rejected, pairs.groups % 2), RewardHeadConfig(ensemble=3)
        )


def test_score_and_a_forward_pass_show_the_deviation(uncertain):
    model, tokenizer = load_reward_model(uncertain, CPU)
    rows = list(score_rows(model, tokenizer, PAIRS))
    assert all(row["chosen_reward_deviation"] > 0 and row["rejected_reward_deviation"] > 0 for row in rows)
    text = tokenizer.apply_chat_template(PAIRS[0]["prompt"] + PAIRS[0]["chosen"], tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    output = model(ids)
    assert output.standard_deviation.item() == pytest.approx(rows[0]["chosen_reward_deviation"], rel=1e-4)
    assert not [name for name, p in model.named_parameters() if "ensemble" in name and p.requires_grad]


def test_the_rewards_are_those_without_an_ensemble(uncertain, trained):
    for ours, plain in zip(
        *(score_rows(*load_reward_model(str(x), CPU), PAIRS) for x in (uncertain, trained)), strict=True
    ):
        assert ours["chosen_reward"] == pytest.approx(plain["chosen_reward"], abs=1e-6)
        assert "chosen_reward_deviation" not in plain


def test_pessimism_takes_the_deviation_everywhere(uncertain, world, tmp_path, capsys):
    careful = tmp_path / "careful"
    pairs = ["--dataset", str(world / "test.jsonl"), "--cache_dir", str(tmp_path / "cache")]
    assert main(["edit", uncertain, "--pessimism", "2", "--output_dir", str(careful), *pairs]) == 0
    assert "before" in capsys.readouterr().out
    model, tokenizer = load_reward_model(str(careful), CPU)
    plain = score_rows(*load_reward_model(uncertain, CPU), PAIRS)
    for before, after in zip(plain, score_rows(model, tokenizer, PAIRS), strict=True):
        expected = before["chosen_reward"] - 2 * before["chosen_reward_deviation"]
        assert after["chosen_reward"] == pytest.approx(expected, abs=1e-5)
    for explained in explain_rows(model, tokenizer, PAIRS):
        explanation = explained.explanations["chosen_reward"]
        assert explanation.unexplained == pytest.approx(0, abs=1e-5)
        assert "for uncertainty" in repr(explanation) and "±" in explanation._repr_html_()
        assert explained.as_json()["chosen_explanation"]["penalty"] == explanation.penalty > 0
    undone = tmp_path / "undone"
    assert main(["edit", str(careful), "--pessimism", "0", "--output_dir", str(undone)]) == 0
    assert SparseRMConfig.from_pretrained(undone).pessimism == 0


def test_claims_and_drift_are_those_without_pessimism(uncertain, world):
    saved = SavedRewardModel.load(uncertain, "float32")
    pairs = saved.tokenize(load_preferences(str(world / "test.jsonl")))

    def figures():
        return check_claims(saved.model, saved.model.model, pairs), score_for_drift(saved.model, [], pairs.texts[:9])

    claims, drift = figures()
    saved.model.config.pessimism = 3.0
    careful, also = figures()
    assert careful == claims
    np.testing.assert_array_equal(also.rewards, drift.rewards)
    explained = explain_pair(saved, pairs, 0)
    saved.model.config.pessimism = 0.0
    plain = explain_pair(saved, pairs, 0)
    for ours, theirs in zip(explained.sides, plain.sides, strict=True):
        added = [[part.value for part in side.bar if part.number == 0] for side in (ours, theirs)]
        assert added[0] == pytest.approx(added[1], abs=1e-6)  # by all other latents


def test_what_is_linear_refuses_pessimism(uncertain, tmp_path):
    careful = tmp_path / "careful"
    edit_model(uncertain, careful, pessimism=1.0)
    assert "1 standard deviations over the ensemble of 20 heads" in (careful / "README.md").read_text()
    with pytest.raises(SparseRMError, match="its pessimism is no linear function"):
        check_exact(SparseRMConfig.from_pretrained(careful))
    with pytest.raises(SparseRMError, match="'careful' cannot be combined, as its pessimism is no sum over latents"):
        combine([str(careful), uncertain], tmp_path / "both")


def test_a_trainer_logs_the_deviation_and_a_server_sends_it(uncertain):
    logged = {}
    SparseRMReward(uncertain)(["w1 w2"], ["w3"], log_metric=lambda name, value: logged.update({name: value}))
    assert {"model/chosen", "model/rejected", "model/deviation"} == logged.keys()
    testclient = pytest.importorskip("fastapi.testclient")
    from sparserm_hf.server.app import create_app

    with testclient.TestClient(create_app(*load_reward_model(uncertain, CPU), "model"), "http://localhost") as client:
        (row,) = client.post("/score", json={"rows": PAIRS[:1]}).json()["rows"]
        assert row["chosen_reward_deviation"] > 0


def test_slim_and_combined_models(uncertain, tmp_path):
    model, tokenizer = load_reward_model(uncertain, CPU)
    ids = torch.tensor([[7, 8, 9]])
    assert model.to_slim()(ids).standard_deviation == model(ids).standard_deviation
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    combine([uncertain, str(tmp_path / "other")], tmp_path / "both")
    both = AutoModelForSequenceClassification.from_pretrained(tmp_path / "both")
    assert both(ids).standard_deviation is None and both.config.ensemble == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ensemble": 1}, "an ensemble has at least 2 heads"),
        ({"ensemble": 20, "head_type": "mlp"}, "all of them linear"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(SparseRMError, match=sentence):
        RewardHeadConfig(**settings)


def test_so_are_an_adapter_and_pessimism_without_an_ensemble(world, trained, tmp_path, capsys):
    arguments = train_arguments(world, tmp_path / "out", ensemble=20, adapter_rank=2)
    assert main(arguments) == 2 and "adapter_rank and ensemble exclude each other" in capsys.readouterr().err
    for pessimism in ("1", "-1", "nan"):
        edit = ["edit", str(trained), "--pessimism", pessimism, "--output_dir", str(tmp_path / "out")]
        assert main(edit) == 2 and "needs an ensemble" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for broken in ({"pessimism": 1.0}, {"ensemble": 2, "head_type": "mlp"}, {"ensemble": 1}, {"pessimism": -1.0}):
        with pytest.raises(ValueError, match=r"pessimism is|ensemble is|head_type is"):
            SparseRMConfig(**broken)
