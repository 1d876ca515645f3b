"""Several reward models as one: each keeps its rewards, and the weighted sum of these is one linear head."""

import numpy as np
import pytest
import torch
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from tiny import tiny_causal_lm, tiny_reward_model, tiny_texts
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from world import make_rows, train_arguments, write_jsonl

from sparserm_hf import SparseRMError, SparseRMReward, combine, load_reward_model, score_rows
from sparserm_hf.cli.main import main
from sparserm_hf.explanations.explained_rows import explain_rows
from sparserm_hf.training.calibration import fit_weights
from sparserm_hf.training.directions import directions_through

CPU = torch.device("cpu")
ROWS = [{"messages": row["prompt"] + row["chosen"]} for row in make_rows(5, seed=8)]
ROWS += [{"messages": [*ROWS[0]["messages"][:1], {"role": "assistant", "content": ""}]}]


def train(world, out, **changes):
    assert main(train_arguments(world, out, **changes)) == 0
    return str(out)


@pytest.fixture(scope="module")
def members(world, tmp_path_factory):
    """Folders of two models with other preferences and other numbers of latents, by the kind of their directions."""
    root = tmp_path_factory.mktemp("members")
    other = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in make_rows(90, seed=5)]
    write_jsonl(root / "other.jsonl", other)
    made = {}
    for kind in ("orthogonal", "raw"):
        first = train(world, root / kind / "words", directions=kind)
        train(world, root / kind / "second", directions=kind, dataset=root / "other.jsonl", k=4)
        # A steered member: what is dropped there does not count in the combined model either.
        latent = SparseRMConfig.from_pretrained(root / kind / "second").latent_ids[0]
        steered = root / kind / "steered"
        assert (
            main(["edit", str(root / kind / "second"), "--steer", f"{latent}=0.3", "--output_dir", str(steered)]) == 0
        )
        made[kind] = [first, str(steered)]
    return made


@pytest.fixture(scope="module")
def combined(members, tmp_path_factory):
    """The folder of the two combined, with the weights 2 and -1."""
    folder = tmp_path_factory.mktemp("combined") / "both"
    arguments = ["--weights", "2", "-1", "--output_dir", str(folder)]
    assert main(["combine", *members["orthogonal"], *arguments]) == 0
    return str(folder)


def score(folder, rows=ROWS):
    return list(score_rows(*load_reward_model(folder, CPU), rows))


@pytest.mark.parametrize("kind", ["orthogonal", "raw"])
def test_each_objective_keeps_the_rewards_of_its_own_model(members, kind, tmp_path, equal):
    combine(members[kind], tmp_path / "both", weights=[2, -1])
    found = score(str(tmp_path / "both"))
    expected = np.zeros(len(ROWS))
    for folder, weight in zip(members[kind], (2, -1), strict=True):
        rewards = np.array([row["reward"] for row in score(folder)])
        name, config = folder.rpartition("/")[2], SparseRMConfig.from_pretrained(folder)
        if weight < 0:  # an empty response must not gain by a negative weight
            rewards[-1] = 2 * config.reward_mean - rewards[-1]
        equal("`sparserm combine`, each objective", rewards, [row["reward_by_objective"][name] for row in found], 1e-5)
        expected += weight * (rewards - config.reward_mean) / config.reward_std
    np.testing.assert_allclose([row["reward"] for row in found], expected, atol=1e-4)


def test_the_shared_directions_are_orthonormal_and_none_that_keep_the_rewards_are_closer():
    rng = np.random.default_rng(0)
    given, kept = rng.standard_normal((6, 20)), rng.standard_normal((2, 20))
    made = directions_through(given, kept)
    np.testing.assert_allclose(made.rows @ made.rows.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(kept @ made.rows.T @ made.rows, kept, atol=1e-12)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    for _ in range(50):  # any other orthonormal directions whose span holds the kept vectors
        beside = np.linalg.qr(np.concatenate([kept, made.rows + 0.1 * rng.standard_normal((6, 20))]).T)[0].T[:6]
        turned = np.linalg.svd(unit @ beside.T, full_matrices=False)
        assert (turned[0] @ turned[2] @ beside * unit).sum() <= made.purities.sum() + 1e-9


def test_the_weights_of_the_objectives_can_be_changed_later(combined, tmp_path):
    model, tokenizer = load_reward_model(combined, CPU)
    messages = [row["messages"] for row in ROWS]
    parts = model.predict_objectives(messages, tokenizer)
    model.weigh({"words": 0.0})
    objective = model.config.objectives[1]
    expected = [-(part["steered"] - objective["reward_mean"]) / objective["reward_std"] for part in parts]
    assert model.predict(messages, tokenizer) == pytest.approx(expected, abs=1e-4)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert again.predict(messages, tokenizer) == pytest.approx(expected, abs=1e-4)
    assert [of["weight"] for of in again.config.objectives] == [0.0, -1.0]
    with pytest.raises(ValueError, match="'sense' is not one of the objectives, which are words, steered"):
        model.weigh({"sense": 1.0})
    with pytest.raises(ValueError, match="words has the weight nan"):
        model.weigh({"words": float("nan")})
    with pytest.raises(ValueError, match="All objectives have the weight 0"):
        model.weigh({"words": 0.0, "steered": 0.0})
    scale, spread = model.config.reward_temperature, model.config.reward_std
    model.weigh({"steered": -10.0})  # ten times as much: the probabilities stay
    assert model.config.reward_temperature == pytest.approx(10 * scale)
    assert model.config.reward_std == pytest.approx(10 * spread)
    ordinary = tiny_reward_model()
    with pytest.raises(ValueError, match="nothing to weigh"):
        ordinary.weigh({"words": 1.0})
    with pytest.raises(ValueError, match="one objective: call predict"):
        ordinary.predict_objectives(messages, tokenizer)


def test_weights_are_fitted_to_pairs_that_are_labelled_on_the_whole(members, world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)  # where a slim checkpoint finds its base model
    out = tmp_path / "fitted"
    pairs = ["--dataset", str(world / "test.jsonl"), "--cache_dir", str(tmp_path / "cache")]
    assert main(["combine", *members["orthogonal"], *pairs, "--output_dir", str(out), "--slim"]) == 0
    printed = capsys.readouterr().out
    assert "objective words alone" in printed and "60 pairs" in printed
    words, steered = SparseRMConfig.from_pretrained(out).objectives
    assert words["weight"] > 0 and steered["weight"] == 0  # the second model prefers the opposite
    card = (out / "README.md").read_text()
    assert f"| words | {words['weight']:.3g} |" in card and "objective steered alone" in card
    assert not (out / "model.safetensors").stat().st_size > 2**20


def test_an_empty_response_has_the_lowest_reward_under_any_weights(combined):
    model, tokenizer = load_reward_model(combined, CPU)
    training = [{"messages": row["prompt"] + row[side]} for row in make_rows(120) for side in ("chosen", "rejected")]
    for weights in ((1, 1), (2, -1), (1, -2), (-1, -1), (0, 1)):
        model.weigh(dict(zip(("words", "steered"), map(float, weights), strict=True)))
        *others, empty = (row["reward"] for row in score_rows(model, tokenizer, [*training, ROWS[-1]]))
        assert empty < np.quantile(others, 0.02), weights


def test_weights_of_a_planted_world_are_found_again():
    rng = np.random.default_rng(0)
    margins = rng.standard_normal((20_000, 3))
    labels = rng.random(20_000) < 1 / (1 + np.exp(-margins @ [2.0, 0.5, -1.0]))
    found = fit_weights(np.where(labels[:, None], margins, -margins))
    assert found[2] == 0  # none is below zero
    without = fit_weights(np.where(labels[:, None], margins, -margins)[:, :2])
    np.testing.assert_allclose(found[:2], without, rtol=1e-3)
    assert found[0] / found[1] == pytest.approx(4, rel=0.1)


def test_an_explanation_tells_what_each_objective_adds(combined, capsys, tmp_path):
    model, tokenizer = load_reward_model(combined, CPU)
    for explained in explain_rows(model, tokenizer, ROWS):
        explanation = explained.explanations["reward"]
        parts = [part.contribution for part in explanation.objectives]
        assert sum(parts) == pytest.approx(explanation.reward, abs=1e-4)
        for effect in explanation.latents:
            assert sum(effect.by_objective.values()) == pytest.approx(effect.contribution, abs=1e-4)
        assert explained.as_json()["explanation"]["objectives"][0]["name"] == "words"
        assert "of words" in repr(explanation) and "of steered" in explanation._repr_html_()
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    assert main(["explain", combined, rows]) == 0
    assert "of words" in capsys.readouterr().out


def test_a_trainer_sees_one_reward_and_logs_each_objective(combined, tmp_path):
    model, tokenizer = load_reward_model(combined, CPU)
    output = model(torch.tensor([[5, 6, 7]]))
    assert output.logits.shape == (1, 1) and output.rewards.shape == (1, 2)
    rows = [{"input_ids": [5, 6, 7], "labels": 0.5}, {"input_ids": [8, 9], "labels": -0.5}]
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    predicted = Trainer(model, args, processing_class=tokenizer).predict(rows)
    assert isinstance(predicted.predictions, np.ndarray) and predicted.predictions.shape == (2, 1)
    logged = {}
    reward = SparseRMReward(combined)
    prompts, completions = (["w1 w2"] * 2, ["w3", "w40"])
    reward(prompts, completions, log_metric=lambda name, value: logged.update({name: value}))
    assert {"both/words", "both/steered", "both/chosen", "both/rejected"} == logged.keys()


def test_the_server_gives_each_objective(combined):
    testclient = pytest.importorskip("fastapi.testclient")
    from sparserm_hf.server.app import create_app

    with testclient.TestClient(create_app(*load_reward_model(combined, CPU), "both"), "http://localhost") as client:
        (row,) = client.post("/score", json={"rows": ROWS[:1]}).json()["rows"]
        expected = score(combined)[0]
        assert row["reward"] == pytest.approx(expected["reward"], abs=1e-5)
        assert row["reward_by_objective"] == pytest.approx(expected["reward_by_objective"], abs=1e-5)
        logs = client.post("/get_reward", json={"query": ["w1 w2"]}).json()["extra_logs"]
        assert logs.keys() == {"chosen", "rejected", "words", "steered"}


def test_a_parquet_file_keeps_the_objectives_too(combined, tmp_path):
    pytest.importorskip("ray")
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sparserm_hf.integrations.ray_data import PartScorer, plan_parts

    rows = [{"prompt": row["prompt"][0]["content"], "completion": row["chosen"][0]["content"]} for row in make_rows(3)]
    pq.write_table(pa.Table.from_pylist([*rows, {"prompt": "", "completion": ""}]), tmp_path / "in.parquet")
    scorer = PartScorer(tmp_path / "out", "source", combined, "auto", None, None, False)
    (part,) = plan_parts([tmp_path / "in.parquet"])
    answer = scorer(part)
    assert not answer["error"]
    (written,) = scorer.folder.glob("*.parquet")
    *scored, failed = pq.read_table(written).to_pylist()
    assert all(row["reward_by_objective"].keys() == {"words", "steered"} for row in scored)
    assert failed["reward_by_objective"] is None and failed["reward_error"]


def changed(field, value):
    """Change a field of the configuration of the second of two models."""

    def change(folders, tmp_path):
        model, tokenizer = load_reward_model(folders[1], CPU)
        setattr(model.config, field, value)
        model.save_pretrained(tmp_path / "changed")
        tokenizer.save_pretrained(tmp_path / "changed")
        return [folders[0], str(tmp_path / "changed")]

    return change


def other_weights(folders, tmp_path):
    model, tokenizer = load_reward_model(folders[1], CPU)
    with torch.no_grad():
        next(model.model.parameters()).add_(0.01)
    model.config.adapter_rank = 4
    model.save_pretrained(tmp_path / "adapted")
    tokenizer.save_pretrained(tmp_path / "adapted")
    return [folders[0], str(tmp_path / "adapted")]


def shorter(folders, tmp_path):
    model, tokenizer = load_reward_model(folders[1], CPU)
    tokenizer.model_max_length = 16
    model.save_pretrained(tmp_path / "shorter")
    tokenizer.save_pretrained(tmp_path / "shorter")
    return [folders[0], str(tmp_path / "shorter")]


def slim(folders, tmp_path):
    model, tokenizer = load_reward_model(folders[1], CPU)
    model.config.base_model_name_or_path = str(tmp_path / "base")
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    model.to_slim().save_pretrained(tmp_path / "slim")
    tokenizer.save_pretrained(tmp_path / "slim")
    return [folders[0], str(tmp_path / "slim")]


@pytest.mark.parametrize(
    ("change", "weights", "sentence"),
    [
        (lambda folders, _: folders[:1], None, "there must be several, with names of their own"),
        (lambda folders, _: [folders[0], folders[0]], None, "named words, words"),
        (lambda folders, _: folders, [1.0], "The weights are 1.0 for 2 reward models"),
        (lambda folders, _: folders, [0.0, 0.0], "not all of them zero"),
        (lambda folders, _: folders, [float("nan"), 1.0], "give a number for each"),
        (lambda folders, _: folders, [1e200, 1.0], "give a number for each"),
        (
            changed("pooling", "mean"),
            None,
            "'words' and 'changed' cannot be combined, as they differ in their pooling",
        ),
        (changed("run_dtype", "bfloat16"), None, "differ in their run dtype"),
        (other_weights, None, "differ in their base model, which an adapter has changed"),
        (shorter, None, "differ in their maximum length"),
        (slim, None, "'slim' cannot be combined, as it is slim"),
    ],
)
def test_models_that_cannot_be_combined_are_refused(members, change, weights, sentence, tmp_path):
    with pytest.raises(SparseRMError, match=sentence):
        combine(change(members["orthogonal"], tmp_path), tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_so_are_combined_models_mlp_heads_and_pairs_that_no_objective_agrees_with(members, combined, world, tmp_path):
    mlp = train(world, tmp_path / "mlp", head_type="mlp")
    for other, reason in ((combined, "it is a combined one"), (mlp, "its reward is no sum over latents")):
        with pytest.raises(SparseRMError, match=reason):
            combine([members["orthogonal"][0], other], tmp_path / "out")
    good = members["orthogonal"][0]
    copy = tmp_path / "copy"
    model, tokenizer = load_reward_model(good, CPU)
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    worse = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in make_rows(30, seed=1)]
    with pytest.raises(SparseRMError, match="would replace"):
        combine([good, str(copy)], copy)
    with pytest.raises(SparseRMError, match="No objective agrees with the pairs"):
        combine([good, str(copy)], tmp_path / "out", rows=worse, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


def test_a_configuration_with_broken_objectives_is_refused():
    objective = {"name": "a", "weight": 1.0, "reward_mean": 0.0, "reward_std": 1.0}
    with pytest.raises(ValueError, match="objectives has a name twice: a, a"):
        SparseRMConfig(objectives=[objective, objective])
    for broken in ([objective | {"reward_std": 0}], [{"name": "a"}], "a", [3]):
        with pytest.raises(ValueError, match="objectives is"):
            SparseRMConfig(objectives=broken)


def test_an_ordinary_model_has_no_objectives():
    model = tiny_reward_model()
    assert model.objectives is None and not model.config.objectives
    text = torch.tensor([tiny_texts()[0]])
    assert model(text, torch.ones_like(text)).rewards is None
