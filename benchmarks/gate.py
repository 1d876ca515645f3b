"""Does a gate by the prompt rank mixed pairs better than the plain sum of the objectives?

    python benchmarks/gate.py DATA_DIR WORK_DIR [--pairs 300] [--gate_pairs 300]

Trains a reward model for each task on the first pairs, and combines them. The weights and the gate are fitted on the
next pairs of all tasks, mixed, without the name of the task. Test pairs of all tasks are then ranked by the sum with
equal weights, by fitted weights, by a gate on either, by a gate that is told the task instead of the prompt, and by
each task's own objective. Writes `results/gate.md`.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from combined import train
from datasets import concatenate_datasets
from layers import RESULTS, TASKS, machine
from scipy.special import softmax

from sparserm_hf import combine, load_preferences
from sparserm_hf.evaluation import (
    SavedRewardModel,
    objective_margins,
    pair_credits,
    pair_metrics,
    paired_difference,
    prompt_features,
)
from sparserm_hf.training.calibration import fit_weights
from sparserm_hf.training.gating import FittedGate, fit_gate

TEST_PAIRS = 200  # of each task


@dataclass(frozen=True)
class Mixed:
    """Pairs of all tasks.

    Attributes:
        tasks: (N,) number of each pair's task.
        prompts: (N, K) features of the prompts.
        margins: (N, objectives) standardised reward differences by objective.
        groups: (N,) number of each pair's prompt.
    """

    tasks: np.ndarray
    prompts: np.ndarray
    margins: np.ndarray
    groups: np.ndarray

    @classmethod
    def read(cls, saved: SavedRewardModel, data: Path, part: str, rows: slice, cache: Path) -> "Mixed":
        """Measure the pairs of some rows of each task."""
        files = [str(data / task / f"{part}.jsonl.gz") for task in TASKS]
        of_tasks = [load_preferences(file, f"train[{rows.start}:{rows.stop}]") for file in files]
        mixed = concatenate_datasets([pairs.select_columns(["prompt", "chosen", "rejected"]) for pairs in of_tasks])
        ends, pairs = np.cumsum([len(of_task) for of_task in of_tasks]), saved.tokenize(mixed)
        represented = saved.represent(pairs.texts, cache, prompts=True)
        prompts = prompt_features(saved.model, represented, pairs)
        margins = objective_margins(saved.model, represented, pairs)
        return cls(np.searchsorted(ends, pairs.rows, side="right"), prompts, margins, np.array(pairs.groups))

    def with_tasks(self) -> "Mixed":
        """Replace the features of the prompts by the task, one column each."""
        return replace(self, prompts=np.eye(len(TASKS))[self.tasks])

    def shares(self, gate: FittedGate) -> np.ndarray:
        """Compute the (N, objectives) shares that a gate gives the objectives."""
        return self.margins.shape[1] * softmax((self.prompts - gate.average) @ gate.weight.T, 1)


def row(name: str, margins: np.ndarray, test: Mixed, reference: np.ndarray) -> str:
    difference = paired_difference(pair_credits(margins), pair_credits(reference))
    by_task = [f"{100 * pair_metrics(margins[test.tasks == i]).accuracy:.1f}" for i in range(len(TASKS))]
    return f"| {name} | {pair_metrics(margins)} | {difference} | {' | '.join(by_task)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--gate_pairs", type=int, default=300)
    args = parser.parse_args()
    folders = [train(args.data, args.work, task, args.pairs) for task in TASKS]
    combine(folders, args.work / "sum")
    saved, cache = SavedRewardModel.load(str(args.work / "sum")), args.work / "cache"
    fitting = Mixed.read(saved, args.data, "train", slice(args.pairs, args.pairs + args.gate_pairs), cache)
    test = Mixed.read(saved, args.data, "test", slice(0, TEST_PAIRS), cache)
    weights = fit_weights(fitting.margins)
    total = test.margins.sum(1)
    lines = [
        f"| | accuracy | difference to the sum | {' | '.join(TASKS)} |",
        f"|---|---|---|{'---:|' * len(TASKS)}",
        row("sum, equal weights", total, test, total),
        row("sum, fitted weights", test.margins @ weights, test, total),
    ]
    told = []
    gates = {
        "a gate by the prompt, equal weights": (np.ones(len(TASKS)), fitting, test),
        "a gate by the prompt, fitted weights": (weights, fitting, test),
        "a gate that knows the task, equal weights": (np.ones(len(TASKS)), fitting.with_tasks(), test.with_tasks()),
    }
    for name, (given, fitted, tested) in gates.items():
        gate = fit_gate(fitted.prompts, fitted.margins * given, fitted.groups)
        shares = tested.shares(gate)
        lines.append(row(name, (shares * tested.margins * given).sum(1), test, total))
        told += [
            f"{name[0].upper()}{name[1:]}: gain in the mean log likelihood of a held-out preference {gate.gain:+.4f}, "
            f"standard error {gate.error:.4f}; `combine` would {'' if gate.helps else 'not '}write it. Mean share of "
            "each objective (columns) on the test prompts of each task (rows):",
            "",
            f"| | {' | '.join(TASKS)} |",
            f"|---|{'---:|' * len(TASKS)}",
            *(
                f"| {task} | {' | '.join(f'{x:.2f}' for x in shares[test.tasks == i].mean(0))} |"
                for i, task in enumerate(TASKS)
            ),
            "",
        ]
    own = test.margins[np.arange(len(test.tasks)), test.tasks]
    lines.append(row("each task's own objective, which knows the task", own, test, total))
    text = (
        f"Accuracy in %, with its 95% interval, on {len(test.tasks)} test pairs of {', '.join(TASKS)}, by reward "
        f"models of {args.pairs} training pairs each, SmolLM2-135M-Instruct. Weights and gates were fitted on "
        f"{len(fitting.tasks)} further training pairs of all tasks, mixed; fitted weights: "
        f"{', '.join(f'{x:.2f}' for x in weights)}. The difference is paired, in points. {machine()}. Made by `python "
        f"benchmarks/gate.py DATA_DIR WORK_DIR --pairs {args.pairs} --gate_pairs {args.gate_pairs}`.\n\n"
        + "\n".join([*lines, "", *told])
    )
    (RESULTS / "gate.md").write_text(text.rstrip() + "\n")
    print(text)


if __name__ == "__main__":
    main()
