"""Probabilities out of reward differences."""

import json

import numpy as np
import pytest
import torch
from scipy.special import expit
from world import make_rows, write_jsonl

from sparserm_hf.cli.main import main
from sparserm_hf.evaluation.calibration_error import calibration_error
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.training.calibration import fit_temperature


@pytest.mark.parametrize("temperature", [0.2, 1.0, 7.0])
def test_a_planted_temperature_is_found_and_makes_probabilities_true(temperature):
    rng = np.random.default_rng(0)
    sizes = np.abs(rng.normal(0, 3 * temperature, 20_000))
    margins = np.where(rng.random(len(sizes)) < expit(sizes / temperature), sizes, -sizes)
    found = fit_temperature(margins)
    assert found == pytest.approx(temperature, rel=0.05)
    assert calibration_error(margins, found) < 0.01
    assert calibration_error(margins, 5 * found) > 0.1


def test_the_calibration_error_by_hand():
    margins = np.array([2.0] * 8 + [-2.0] * 2)  # 80% right, all with one confidence
    assert calibration_error(margins, 1.0) == pytest.approx(expit(2.0) - 0.8)
    assert calibration_error(margins, 2.0 / np.log(4)) == pytest.approx(0.0, abs=1e-12)
    # Two bins, one too sure by 0.1, the other not sure enough by as much, with a tie in the latter.
    margins = np.array([np.log(9)] * 8 + [-np.log(9)] * 2 + [0.0])
    assert calibration_error(margins, 1.0) == pytest.approx((0.1 * 10 + 0.0 * 1) / 11)


def test_margins_that_say_nothing_or_everything_have_a_temperature():
    assert fit_temperature(np.zeros(5)) == 1.0
    assert fit_temperature(np.ones(5)) == pytest.approx(0.01, rel=0.01)
    assert fit_temperature(np.array([1.0, -1.0] * 5)) == pytest.approx(100, rel=0.01)
    assert fit_temperature(np.full(5, 2000.0)) == pytest.approx(20, rel=0.01)


def test_training_stores_it_and_score_uses_it(world, trained, tmp_path, capsys):
    model, _ = load_reward_model(str(trained), torch.device("cpu"))
    temperature = model.config.reward_temperature
    assert 0 < temperature != 1.0
    rows = [*make_rows(5, seed=3), {"text": "w1 w2"}]
    source, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert main(["score", str(trained), source, "--probabilities", "--output", str(out)]) == 0
    *pairs, text = (json.loads(line) for line in out.read_text().splitlines())
    for pair in pairs:
        difference = pair["chosen_reward"] - pair["rejected_reward"]
        assert pair["chosen_probability"] == pytest.approx(expit(difference / temperature))
    assert "chosen_probability" not in text
    capsys.readouterr()
    assert main(["score", str(trained), source]) == 0
    assert "probability" not in capsys.readouterr().out
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main(["evaluate", str(trained), str(world / "test.jsonl"), *cache]) == 0
    assert f"with the temperature {temperature:.3g}" in " ".join(capsys.readouterr().out.split())
    assert "is the probability that a response is preferred" in (trained / "README.md").read_text()
