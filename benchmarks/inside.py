"""What debiasing does to accuracy by length, and what the drift monitor says of other texts, on the three tasks.

    python benchmarks/inside.py DATA_DIR

Trains on the first 1,000 pairs of each task with and without `debias`, measures on all of `test`, and holds test
responses of every task against the training responses of each. The manual's figures on both are from here.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from layers import FITTED, RESULTS, TASKS, machine

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.monitoring import measure_drift, score_for_drift

TEXTS = 200  # that are held against the training responses


def train(data: Path, task: str, folder: str, debias: str) -> SparseRMTrainer:
    trainer = SparseRMTrainer(
        find_base_model(),
        args=SparseRMTrainingConfig(f"{folder}/{task}", debias=debias),
        train_dataset=load_preferences(str(data / task / "train.jsonl.gz"), FITTED),
        eval_dataset=load_preferences(str(data / task / "test.jsonl.gz")),
    )
    trainer.train()
    return trainer


def main(data: Path) -> None:
    lines = [
        f"Made by `python benchmarks/inside.py DATA_DIR` on {machine()}.\n",
        "## Debiasing\n",
        "| | `debias` | accuracy % | shorter chosen | equally long | longer chosen | correlation with length |",
        "|---|---|---|---|---|---|---|",
    ]
    trained = {}
    with TemporaryDirectory() as folder:
        for task in TASKS:
            for debias in ("length,format", "length", "none"):
                trainer = trained[task] = train(data, task, folder, debias)
                found = trainer.evaluation
                kinds = found.metrics_by_length()
                cells = [found.reward_model, *kinds.values()]
                accuracies = " | ".join(f"{100 * cell.accuracy:.1f}" for cell in cells)
                follows = found.style_correlations()["tokens"]
                lines.append(f"| {task} | {debias} | {accuracies} | {follows:+.2f} |")
                print(lines[-1], flush=True)
    lines += [
        "\n## Drift\n",
        f"The first {TEXTS} test responses of a task (columns) against the training of a reward model (rows): % of "
        "the features outside the range that holds 99% in training / % of the rewards that the dense twin contradicts "
        "as 1% in training.\n",
        f"| trained on | {' | '.join(TASKS)} |",
        f"|---|{'---|' * len(TASKS)}",
    ]
    for task, trainer in trained.items():
        cells = []
        for other in TASKS:
            texts = trained[other].eval_pairs.texts[:TEXTS]
            drift = measure_drift(trainer.reference, score_for_drift(trainer.model, trainer.controls, texts))
            cells.append(f"{100 * drift.outside_share:.1f} / {100 * drift.disagreement:.1f}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    (RESULTS / "inside.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
