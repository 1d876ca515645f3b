"""RM-Bench: its figures, comparison by comparison, and the command that prints them. It has no package."""

import numpy as np
import pytest
from world import make_rows, named, random_prompts, write_jsonl

from sparserm_hf import SparseRMError, run_benchmark
from sparserm_hf.cli.main import main
from sparserm_hf.evaluation.benchmark_scores import score_rm_bench


def test_rm_bench_compares_every_style_with_every_other():
    rng = np.random.default_rng(1)
    subsets = ["chat"] * 7 + ["code"] * 5 + ["safety-refuse"] * 6 + ["safety-response"] * 3
    prompts, rewards = random_prompts(subsets, lambda i: (3, 3), rng)
    ours = named(score_rm_bench(prompts, rewards))

    def accuracy(subset, level):
        """As the paper's section 3.3 has it, comparison by comparison."""
        wins = []
        for prompt in prompts:
            for chosen_style, chosen in enumerate(prompt.chosen):
                for rejected_style, rejected in enumerate(prompt.rejected):
                    fancier = rejected_style - chosen_style
                    if prompt.subset == subset and (fancier > 0) - (fancier < 0) == level:
                        wins.append(rewards[chosen] > rewards[rejected])
        return np.mean(wins)

    levels = {"hard": 1, "normal": 0, "easy": -1}
    for subset in set(subsets):
        for name, level in levels.items():
            assert ours[f"{subset}, {name}"] == pytest.approx(accuracy(subset, level))
    for name in levels:
        safety = (ours[f"safety-refuse, {name}"] + ours[f"safety-response, {name}"]) / 2
        assert ours[f"safety, {name}"] == pytest.approx(safety)
        whole = (ours[f"chat, {name}"] + ours[f"code, {name}"] + safety) / 3
        assert ours[f"mean of domains, {name}"] == pytest.approx(whole)
    assert ours["mean of domains"] == pytest.approx(np.mean([ours[f"mean of domains, {name}"] for name in levels]))


def test_the_command_prints_the_model_beside_its_controls(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = []
    for i, row in enumerate(make_rows(24, seed=4)):
        prompt, chosen, rejected = (row[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
        styles = ["{}", "w1 {}", "w1 w2 {}"]
        rows.append(
            {
                "id": i,
                "domain": ["chat", "safety-refuse", "safety-response"][i % 3],
                "prompt": prompt,
                "chosen": [style.format(chosen) for style in styles],
                "rejected": [style.format(rejected) for style in styles],
            }
        )
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main(["evaluate", str(trained), source, "--benchmark", "rm-bench", *cache]) == 0
    printed = capsys.readouterr().out
    for name in ("RM-Bench", "SparseRM", "representation", "length alone", "mean of domains, hard", "safety"):
        assert name in printed, name
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert main(["evaluate", str(trained), source, "--benchmark", "rewardbench2", *cache]) == 2
    assert "no `subset`: RewardBench 2 needs the columns prompt" in capsys.readouterr().err
    assert main(["evaluate", str(trained)]) == 2
    assert "nothing to evaluate on" in capsys.readouterr().err
    with pytest.raises(
        SparseRMError, match="no benchmark 'rewardbench3': choose from rewardbench, rewardbench2, rm-b"
    ):
        run_benchmark(str(trained), "rewardbench3")
