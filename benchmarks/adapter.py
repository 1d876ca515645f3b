"""SparseRM with an adapter: accuracy, time, and what becomes of the latents' meaning.

    python benchmarks/adapter.py DATA_DIR WORK_DIR [--tasks ...] [--seeds 0 1 2 3 4] [--pairs 1000 ...]

The package's own training (`sparserm train --adapter_rank 8`) on the first pairs of `train`, measured on all of
`test`. The seed decides the folds, the held-out prompts, the adapter's first weights and the order of the pairs. Each
run leaves `results/adapter/TASK-PAIRS-SEED.json` with the margins of every test pair, with and without the adapter; a
run that is there is not done again, and a killed run goes on where it stopped. Writes `results/adapter.md`, beside the
runs of TRL's RewardTrainer that `trl_reward.py` kept.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from layers import RESULTS, TASKS, machine, measure
from methods import accuracy_cell, difference_cell

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.evaluation.metrics import pair_accuracy
from sparserm_hf.evaluation.row_names import RowName

RANK = 8
FOLDER = RESULTS / "adapter"


def run(data: Path, work: Path, task: str, pairs: int, seed: int) -> dict:
    """Train and evaluate once."""
    args = SparseRMTrainingConfig(
        str(work / "model"), adapter_rank=RANK, seed=seed, cache_dir=str(work / "cache"), check_sae=False
    )
    fitted = load_preferences(str(data / task / "train.jsonl.gz"), f"train[:{pairs}]")
    test = load_preferences(str(data / task / "test.jsonl.gz"))
    trainer = SparseRMTrainer(find_base_model(), None, args, fitted, test)
    metrics = trainer.train()
    assert trainer.evaluation is not None
    found = trainer.evaluation.margins
    margins = {name: found[name].round(6).tolist() for name in (RowName.REWARD_MODEL, RowName.FROZEN)}
    return {"margins": margins, "metrics": metrics, "machine": machine()}


def table(tasks: list[str]) -> str:
    """Accuracies beside TRL's RewardTrainer on the same pairs, cost, and meaning."""
    lines = [
        "| | runs | accuracy | minus TRL's LoRA | minus TRL's full fine-tuning | parameters | seconds |",
        "|---" * 7 + "|",
    ]
    meaning = ["| | explained variance | L0 | claims that hold, % | mean F1 of names |", "|---" * 5 + "|"]
    for task in tasks:
        paths = sorted(FOLDER.glob(f"{task}-1000-*.json"))
        if not paths:
            continue
        runs = [json.loads(path.read_text()) for path in paths]
        trl = {kind: trl_margins(task, kind) for kind in ("lora", "full")}
        for name in (RowName.REWARD_MODEL, RowName.FROZEN):
            margins = np.array([run["margins"][name] for run in runs])
            adapted = name == RowName.REWARD_MODEL
            title = "with adapter" if adapted else name
            metrics = [run["metrics"] for run in runs]
            cost = f"{metrics[0]['trainable_parameters']:,}" if adapted else ""
            seconds = f"{np.mean([m['adapter_seconds'] for m in metrics]):.0f}" if adapted else ""
            differences = " | ".join(difference_cell(margins, trl[kind]) for kind in trl)
            lines.append(
                f"| {task}, {title} | {len(runs)} | {accuracy_cell(margins)} | {differences} | {cost} | {seconds} |"
            )
            when = "adapted" if adapted else "frozen"
            ev, l0, claims, f1 = (
                np.mean([m[f"{when}_{key}"] for m in metrics])
                for key in ("explained_variance", "l0", "claims", "name_f1")
            )
            meaning.append(f"| {task}, {title} | {ev:.3f} | {l0:.1f} | {100 * claims:.1f} | {f1:.2f} |")
        for kind, margins in trl.items():
            lines.append(f"| {task}, TRL's {kind} | {len(margins)} | {accuracy_cell(margins)} | | | | |")
    return "\n".join([*lines, "", *meaning])


def trl_margins(task: str, kind: str) -> np.ndarray:
    """(runs, P) reward differences of the test pairs that `trl_reward.py` kept."""
    paths = sorted((RESULTS / "trl").glob(f"{task}-{kind}-*.json"))
    return np.array([json.loads(path.read_text())["margins"] for path in paths])


def curve() -> str:
    """Accuracy and seconds by number of training pairs."""
    lines = ["| pairs | with adapter | without | seconds of the adapter |", "|---" * 4 + "|"]
    for path in sorted(FOLDER.glob("truthfulness-*-0.json"), key=lambda path: int(path.stem.split("-")[1])):
        run = json.loads(path.read_text())
        cells = [accuracy_cell(np.array(run["margins"][name])) for name in (RowName.REWARD_MODEL, RowName.FROZEN)]
        lines.append(f"| {path.stem.split('-')[1]} | {' | '.join(cells)} | {run['metrics']['adapter_seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pairs", nargs="+", type=int, default=[1000])
    args = parser.parse_args()
    for pairs in args.pairs:
        for seed in args.seeds:
            for task in args.tasks:
                compute = partial(run, args.data, args.work, task, pairs, seed)
                result = measure(FOLDER / f"{task}-{pairs}-{seed}.json", compute)
                accuracies = {
                    name: 100 * pair_accuracy(np.array(result["margins"][name])) for name in result["margins"]
                }
                seconds = result["metrics"]["adapter_seconds"]
                print(f"{task}, {pairs} pairs, seed {seed}: {accuracies}, {seconds:.0f} s", flush=True)
    text = (
        f"SparseRM with an adapter of rank {RANK}, accuracy in % on the whole test set (95% interval, Wilson; mean of "
        "the runs), with paired 95% intervals to the mean of TRL's runs on the same pairs. 1,000 training pairs, "
        f"SmolLM2-135M-Instruct, layer 18. {machine()}. Made by `python benchmarks/adapter.py`.\n\n{table(TASKS)}\n\n"
        f"By number of training pairs, truthfulness, one seed:\n\n{curve()}\n"
    )
    (RESULTS / "adapter.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
