"""RewardBench 1 and 2 against their own package, in an environment of its own with the transformers that it pins.

`make test` sets this environment up.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from world import make_rows, named, random_prompts, write_jsonl

from sparserm_hf.evaluation.benchmark_scores import (
    REWARDBENCH_SECTIONS,
    Prompt,
    score_rewardbench,
    score_rewardbench2,
    score_ties,
)
from sparserm_hf.evaluation.benchmarks import run_benchmark
from sparserm_hf.runtime.errors import SparseRMError

pytestmark = pytest.mark.works_with(
    "rewardbench",
    "RewardBench 1 and 2: its scripts, with transformers 4.51.0, find on a checkpoint what `sparserm evaluate` finds",
    ".venv-rewardbench",
)

PYTHON = Path(__file__).parent.parent / ".venv-rewardbench" / "bin" / "python"

# Its functions on rewards that it is given.
OFFICIAL_SCORES = """
import json, sys
import numpy as np
from datasets import Dataset
from rewardbench import process_single_model, reroll_and_score_dataset
from rewardbench.constants import EXAMPLE_COUNTS, SUBSET_MAPPING
from rewardbench.utils import calculate_scores_per_section
job = json.load(sys.stdin)
by_subset = {}
for subset, chosen, rejected in job["pairs"]:
    by_subset.setdefault(subset, []).append(chosen > rejected)
sections = calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, {k: np.mean(v) for k, v in by_subset.items()})
groups = job["best_of"]
rows = [{"id": str(i), "text": "", "scores": s} for i, group in enumerate(groups) for s in group]
best_of = reroll_and_score_dataset(Dataset.from_list(rows), [len(group) for group in groups])["results"]
ties = process_single_model(Dataset.from_list(job["ties"]))[1]
print(json.dumps([sections, list(best_of), ties]))
"""

# Its scripts run on the first GPU and nowhere else: what they put there stays on the CPU.
OFFICIAL_SCRIPT = """
import runpy, sys
from transformers import BatchEncoding
to = BatchEncoding.to
BatchEncoding.to = lambda self, device: to(self, "cpu" if device == "cuda" else device)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def official(code, *arguments, cwd=None, job=None):
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: `make test` sets it up")
    run = subprocess.run(
        [str(PYTHON), "-c", code, *arguments],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_figures_are_those_of_the_official_code(equal):
    rng = np.random.default_rng(0)
    names = [name for weights in REWARDBENCH_SECTIONS.values() for name in weights]
    pairs, pair_rewards = random_prompts(rng.choice(names, 300), lambda i: (1, 1), rng)
    groups, group_rewards = random_prompts(rng.choice(["Math", "Focus"], 60), lambda i: (1, 3), rng)
    # Prompts with one right answer or with several, with and without a counterpart; levels enough for all terms.
    ties, tie_rewards = random_prompts(["Ties"] * 60, lambda i: (1 if i % 2 else 1 + i % 5, 4), rng, levels=40)
    ties = [Prompt(f"{'ref' if i % 2 else 'tied'}:{i // 2}", "Ties", p.chosen, p.rejected) for i, p in enumerate(ties)]
    ties = [p for p in ties if p.id not in ("ref:3", "tied:4")]
    tie_rewards[[j for p in ties[::3] for j in p.chosen]] += 12
    job = {
        "pairs": [(p.subset, pair_rewards[p.chosen[0]], pair_rewards[p.rejected[0]]) for p in pairs],
        "best_of": [group_rewards[p.chosen + p.rejected].tolist() for p in groups],
        "ties": [
            {"id": p.id, "scores": tie_rewards[p.chosen + p.rejected].tolist(), "num_correct": len(p.chosen)}
            for p in ties
        ],
    }
    sections, best_of, of_ties = json.loads(official(OFFICIAL_SCORES, job=job).splitlines()[-1])
    ours = named(score_rewardbench(pairs, pair_rewards))
    equal("RewardBench's sections, of given rewards", [ours[name] for name in sections], [*sections.values()], 1e-12)
    assert min(sections.values()) > 0 and max(sections.values()) < 1
    ours = named(score_rewardbench2(groups, group_rewards))
    for subset in ("Math", "Focus"):
        shares = [share for share, p in zip(best_of, groups, strict=True) if p.subset == subset]
        equal("RewardBench 2's best of four, of given rewards", ours[subset], np.mean(shares), 1e-12)
        assert set(shares) & {0.5}
    equal("RewardBench 2's score of ties, of given rewards", score_ties(ties, tie_rewards), of_ties, 1e-12)
    assert 0.2 < of_ties < 0.9


def test_a_run_of_the_official_scripts_gives_our_figures(trained, tmp_path, equal):
    """On the checkpoint as anybody downloads it: they load the code that came with it."""
    (tmp_path / "model").symlink_to(trained)
    texts = [[r["prompt"], r["chosen"], r["rejected"]] for r in make_rows(40, seed=9)]
    prompts, chosen, rejected = ([side[0]["content"] for side in sides] for sides in zip(*texts, strict=True))
    best_of = [
        {"id": str(i), "subset": "Math", "prompt": prompts[i], "chosen": [chosen[i]], "rejected": rejected[i : i + 3]}
        for i in range(12)
    ]
    for i in range(12, 20):
        for kind, right in (("ref", 1), ("tied", 4)):
            row = {"id": f"{kind}:{i}", "subset": "Ties", "prompt": prompts[i]}
            best_of.append(row | {"chosen": chosen[i : i + right], "rejected": rejected[i : i + 3]})
    for row in best_of:
        right, wrong = len(row["chosen"]), len(row["rejected"])
        row |= {"num_correct": right, "num_incorrect": wrong, "total_completions": right + wrong}
    write_jsonl(tmp_path / "best-of.jsonl", best_of)
    how = ["--model", "model", "--trust_remote_code", "--torch_dtype", "float32"]
    script = ["scripts.run_v2", *how, "--dataset", "best-of.jsonl", "--do_not_save", "--disable_beaker_save"]
    printed = official(OFFICIAL_SCRIPT, *script, cwd=tmp_path)
    reports = run_benchmark(str(trained), "rewardbench2", best_of, dtype="float32", cache_dir=tmp_path)
    ours = named(reports["SparseRM"])
    assert f"Math: {ours['Math'] * 12}/12" in printed and 0 < ours["Math"] < 1
    theirs = float(printed.split("Ties: Overall score ")[1].split()[0])
    equal("RewardBench 2's script: the score of ties", ours["Ties"], theirs)

    conversations = [
        {"chosen": prompt + good, "rejected": prompt + bad, "prompt": prompt[0]["content"]}
        for prompt, good, bad in texts
    ]
    write_jsonl(tmp_path / "pairs.jsonl", conversations)
    script = ["rewardbench.rewardbench", *how, "--not_quantized", "--dataset", "pairs.jsonl", "--load_json"]
    official(OFFICIAL_SCRIPT, *script, cwd=tmp_path)
    theirs = json.loads((tmp_path / "results" / "model.json").read_text())
    rows = [
        {"subset": "hep-go", "prompt": prompts[i], "chosen": chosen[i], "rejected": rejected[i]} for i in range(40)
    ]
    reports = run_benchmark(str(trained), "rewardbench", rows, dtype="float32", cache_dir=tmp_path)
    equal("RewardBench's command: its accuracy", named(reports["SparseRM"])["all pairs"], theirs["accuracy"], 1e-12)
    assert theirs["num_prompts"] == 40 and 0.6 < theirs["accuracy"] < 1


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"chosen": ["w1", "w2"]}, "2 chosen responses, but RewardBench has 1"),
        ({"rejected": [{"role": "assistant"}]}, "each a string"),
        ({"prompt": 3}, "`prompt` is 3, of the type int"),
        ({"chosen": []}, "0 chosen responses"),
        ({"chosen": 3}, "each a string"),
        ({"chosen": {"role": "assistant"}}, "each a string"),
    ],
)
def test_rows_of_another_form_are_refused(trained, change, sentence):
    row = {"subset": "hep-go", "prompt": "w1", "chosen": ["w2"], "rejected": ["w3"]} | change
    with pytest.raises(SparseRMError, match=sentence):
        run_benchmark(str(trained), "rewardbench", [row])
    with pytest.raises(SparseRMError, match="no row"):
        run_benchmark(str(trained), "rewardbench", [])
    prompt = Prompt("a:1", "Ties", [0], [1])
    with pytest.raises(SparseRMError, match="ref:NUMBER"):
        score_ties([prompt], np.zeros(2))
