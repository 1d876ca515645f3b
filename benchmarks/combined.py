"""What a combined reward model costs, that it keeps each objective's rewards, and whether its explanations are true.

    python benchmarks/combined.py DATA_DIR WORK_DIR [--pairs 1000]

Trains a reward model for each task, combines them, and scores the same responses by one of the models, by the combined
one, and by all of them: three reward functions that TRL calls one after the other (`reward_funcs`). These are timed in
turns. Then the combined reward with equal weights ranks test pairs of all tasks, and its claims are checked on them.
Writes `results/combined.md`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from layers import RESULTS, TASKS, machine, train_once

from sparserm_hf import SparseRMReward, combine, load_preferences

ROUNDS = 5
RESPONSES = 12  # of the test pairs of each task, which are timed
PAIRS = 40  # of the test pairs of each task, which are ranked


def train(data: Path, work: Path, task: str, pairs: int) -> str:
    """Train a reward model for a task, unless it is there."""
    settings = {"cache_dir": str(work / "cache"), "check_sae": False, "controls": False}
    return train_once(work / task, data, task, f"train[:{pairs}]", **settings)


def responses(data: Path) -> dict[str, list[Any]]:
    """Chosen responses with their prompts, of all tasks, as TRL hands them to a reward function."""
    rows = [
        row for task in TASKS for row in load_preferences(str(data / task / "test.jsonl.gz"), f"train[:{RESPONSES}]")
    ]
    return {"prompts": [row["prompt"] for row in rows], "completions": [row["chosen"] for row in rows]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    folders = [train(args.data, args.work, task, args.pairs) for task in TASKS]
    of_tasks = [load_preferences(str(args.data / task / "test.jsonl.gz"), f"train[:{PAIRS}]") for task in TASKS]
    mixed = concatenate_datasets([pairs.select_columns(["prompt", "chosen", "rejected"]) for pairs in of_tasks])
    equal = [1.0] * len(folders)
    evaluation = combine(folders, args.work / "combined", equal, mixed, cache_dir=args.work / "cache")
    assert evaluation is not None and evaluation.claims is not None
    functions = [SparseRMReward(folder) for folder in folders]
    combined, texts = SparseRMReward(str(args.work / "combined")), responses(args.data)
    models = [function.load()[0] for function in functions]

    def by_combined() -> np.ndarray:
        logged: dict[str, list[float]] = {}
        combined(**texts, log_extra=logged.__setitem__)
        return np.array([logged[f"combined/{task}"] for task in TASKS]).T

    def by_each() -> np.ndarray:
        return np.array([function(**texts) for function in functions]).T

    ways = {
        "one model": lambda: functions[0](**texts),
        "combined": by_combined,
        "three models in `reward_funcs`": by_each,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    largest = float(np.abs(by_combined() - by_each()).max() / min(model.config.reward_std for model in models))
    alone = np.array(seconds["one model"])
    lines = ["| | seconds, median | ratio to one model, median of the rounds |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {np.median(of):.2f} | {np.median(np.array(of) / alone):.2f} |" for name, of in seconds.items()
    ]
    latents = ", ".join(str(len(model.config.latents)) for model in models)
    purities = [latent.purity for latent in combined.load()[0].config.latents]
    text = (
        f"Rewards of {len(texts['prompts'])} responses by reward models for {', '.join(TASKS)}, "
        f"SmolLM2-135M-Instruct, {args.pairs} training pairs each; {ROUNDS} rounds, in turns. {machine()}. Made by "
        f"`python benchmarks/combined.py DATA_DIR WORK_DIR --pairs {args.pairs}`.\n\n"
        + "\n".join(lines)
        + "\n\nLargest difference of an objective's reward to its own model's, in standard deviations: "
        f"{largest:.1e}. Latents: {latents} alone, {len(purities)} together; purity {np.mean(purities):.3f} (least "
        f"{min(purities):.3f}), alone {np.mean([x.purity for model in models for x in model.config.latents]):.3f}. "
        f"Of {evaluation.claims.claims} claims on the combined reward {evaluation.claims.held} hold to a tenth.\n\n"
        f"The sum with equal weights on the first {PAIRS} test pairs of each task:\n\n```text\n{evaluation}\n```\n"
    )
    (RESULTS / "combined.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
