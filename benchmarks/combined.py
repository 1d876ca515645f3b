"""What a combined reward model costs, that it keeps each objective's rewards, and whether its explanations are true.

    python benchmarks/combined.py DATA_DIR WORK_DIR [--pairs 1000]

Trains a reward model for each task, combines them, and scores the same responses by one of the models, by the combined
one, and by all of them one after the other as a trainer with several reward functions does. The three are timed in
turns. Then the combined reward with equal weights ranks test pairs of all tasks, and its claims are checked on them.
Writes `results/combined.md`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from layers import RESULTS, TASKS, machine

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, combine, load_preferences, load_reward_model
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.scoring import encoder_of, further_scores, score_texts

ROUNDS = 5
RESPONSES = 12  # of the test pairs of each task, which are timed
PAIRS = 40  # of the test pairs of each task, which are ranked


def train(data: Path, work: Path, task: str, pairs: int) -> str:
    """Train a reward model for a task, unless it is there."""
    folder = work / task
    if not folder.exists():
        rows = load_preferences(str(data / task / "train.jsonl.gz"), f"train[:{pairs}]")
        args = SparseRMTrainingConfig(str(folder), cache_dir=str(work / "cache"), check_sae=False, controls=False)
        trainer = SparseRMTrainer(find_base_model(), None, args, rows)
        trainer.train()
        trainer.save_model()
    return str(folder)


def responses(data: Path) -> list[Any]:
    """Chosen responses with their prompts, of all tasks."""
    found = []
    for task in TASKS:
        rows = load_preferences(str(data / task / "test.jsonl.gz"), f"train[:{RESPONSES}]")
        found += [row["prompt"] + row["chosen"] for row in rows]
    return found


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
    models = [load_reward_model(folder)[0] for folder in folders]
    combined, tokenizer = load_reward_model(str(args.work / "combined"))
    encoder = encoder_of(combined, tokenizer)
    texts = [encoder(messages) for messages in responses(args.data)]

    def by_combined() -> np.ndarray:
        found = further_scores(combined, score_texts(combined, texts).features)
        return np.array([list(of["by_objective"].values()) for of in found])

    def by_each() -> np.ndarray:
        return np.stack([score_texts(model, texts).rewards for model in models], 1)

    ways = {"one model": lambda: score_texts(models[0], texts), "combined": by_combined, "three models": by_each}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    largest = float(np.abs(by_combined() - by_each()).max() / min(model.config.reward_std for model in models))
    median = {name: float(np.median(of)) for name, of in seconds.items()}
    lines = ["| | seconds, median | ratio to one model |", "|---|---:|---:|"]
    lines += [f"| {name} | {of:.2f} | {of / median['one model']:.2f} |" for name, of in median.items()]
    latents = ", ".join(str(len(model.config.latents)) for model in models)
    purities = [latent.purity for latent in combined.config.latents]
    text = (
        f"Rewards of {len(texts)} responses by reward models for {', '.join(TASKS)}, SmolLM2-135M-Instruct, "
        f"{args.pairs} training pairs each; {ROUNDS} rounds, in turns. {machine()}. Made by "
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
