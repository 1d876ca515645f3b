"""Drift: figures by hand, the alarm's exit code, and a trainer that logs them."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from world import make_rows, write_jsonl

from sparserm_hf import DriftCallback, SparseRMConfig, SparseRMError, SparseRMReward, monitor
from sparserm_hf.cli.main import main
from sparserm_hf.evaluation.drift_reference import REFERENCE_FILE, DriftReference
from sparserm_hf.evaluation.saved_models import SavedRewardModel
from sparserm_hf.monitoring.drift import load_reference, measure_drift
from sparserm_hf.monitoring.scored_responses import ScoredResponses, score_for_drift
from sparserm_hf.scoring.scored_texts import score_texts


def test_figures_by_hand():
    features = np.linspace(-1, 1, 1001)[:, None] * [1.0, 2.0]
    reference = DriftReference.of(features, features[:, 0], features[:, 0])
    assert reference.low == pytest.approx([-0.99, -1.98]) and reference.high == pytest.approx([0.99, 1.98])
    same = measure_drift(reference, ScoredResponses(features, features[:, 0], features[:, 0]))
    assert same.outside_share == pytest.approx(0.01, abs=2e-3) and same.alarms(0.03) == []
    assert np.abs(same.shift).max() < 1e-12 and same.disagreement == 0
    other = ScoredResponses(features + np.array([1.0, 0.0]), features[:, 0] + 1, features[:, 0])
    moved = measure_drift(reference, other)
    assert moved.shift == pytest.approx([1 / features[:, 0].std(), 0])
    assert moved.outside == pytest.approx([0.505, 0.01], abs=2e-3)
    assert moved.disagreement == 1 and len(moved.alarms(0.03)) == 2
    assert moved.reward_shift == pytest.approx(1 / features[:, 0].std())
    alone = measure_drift(reference, ScoredResponses(features, features[:, 0], None))
    assert alone.disagreement is None and "drift/disagreement" not in alone.flat()


def test_what_was_trained_on_is_the_reference_and_steering_does_not_count(world, trained):
    saved = SavedRewardModel.load(str(trained))
    texts = saved.tokenize(make_rows(120)).texts
    scored = score_for_drift(saved.model, saved.controls, texts)
    reference = load_reference(str(trained))
    np.testing.assert_allclose(reference.mean, scored.features.mean(0), atol=5e-3)  # computed in bfloat16 batches
    np.testing.assert_allclose(scored.rewards, score_texts(saved.model, texts).rewards, atol=1e-4)
    drift = measure_drift(reference, scored)
    assert drift.outside_share < 0.03 and drift.disagreement < 0.03 and np.abs(drift.shift).max() < 1e-2
    saved.model.steer({saved.model.config.latents[0].id: 5.0})
    np.testing.assert_array_equal(score_for_drift(saved.model, saved.controls, texts).features, scored.features)


def test_monitoring_in_python_names_the_latents(trained):
    drift = monitor(str(trained), make_rows(30, seed=4))
    config = SparseRMConfig.from_pretrained(trained)
    assert drift.responses == 60 and len(drift.latents) == len(drift.shift) == len(drift.outside)
    assert list(drift.latents.values()) == [latent.title for latent in config.latents]
    assert repr(drift).startswith("Drift of 60 responses: ")
    with pytest.raises(SparseRMError, match="no response in the rows"):
        monitor(str(trained), [])


def test_the_exit_code_is_1_for_other_texts_only(world, trained, tmp_path, capsys):
    alike = write_jsonl(tmp_path / "alike.jsonl", make_rows(120, seed=4))
    assert main(["monitor", str(trained), alike, "--alarm", "0.1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # a table's title breaks where its path is long
    assert "No alarm" in printed and "dense twin" in printed and "240 responses" in printed
    # A policy that has found the one good word.
    found = [{"role": "assistant", "content": "w5 " * 30}]
    rows = [{"prompt": row["prompt"], "completion": found} for row in make_rows(40)]
    hacked = write_jsonl(tmp_path / "hacked.jsonl", rows)
    assert main(["monitor", str(trained), hacked, "--alarm", "0.1"]) == 1
    assert "Alarm: " in capsys.readouterr().out
    (tmp_path / "none.jsonl").write_text("")
    assert main(["monitor", str(trained), str(tmp_path / "none.jsonl")]) == 2
    assert "no response in" in capsys.readouterr().err


def test_a_checkpoint_without_reference_is_refused(reward_model, capsys):
    assert main(["monitor", reward_model, "-"]) == 2
    assert REFERENCE_FILE in capsys.readouterr().err
    with pytest.raises(SparseRMError, match="train it anew"):
        DriftCallback(None, SparseRMReward(reward_model))


@pytest.mark.works_with("trl", "`DriftCallback` in `GRPOTrainer`'s logs")
def test_a_trainer_logs_it(trained, policy, tmp_path, caplog):
    reward = SparseRMReward(str(trained))
    args = GRPOConfig(
        str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=4,
        logging_steps=2,
        report_to="none",
        use_cpu=True,
    )
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in make_rows(8)])
    trainer = GRPOTrainer(policy, reward, args=args, train_dataset=prompts)
    trainer.add_callback(DriftCallback(trainer, reward, alarm=0.0))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "drift/outside" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    assert {"drift/shift", "drift/reward_shift", "drift/disagreement"} <= set(logged[0])
    assert any("reward" in entry for entry in trainer.state.log_history), "TRL's own metrics stay"
    assert "outside their range" in caplog.text
    model, _ = reward.load()
    assert torch.isfinite(torch.tensor(logged[1]["drift/shift"])) and model.config.steering == {}
