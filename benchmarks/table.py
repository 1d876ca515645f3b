"""The table: SparseRM, its controls and TRL's RewardTrainer on three tasks.

    python benchmarks/table.py DATA_DIR WORK_DIR

Trained on the first 1,000 pairs of each task, 5 seeds (folds, initial weights, random directions), measured on all
of `test`. Reads what `layers.py` keeps in WORK_DIR and `trl_reward.py` in `results/trl`, writes `results/table.json`
and `.md`. Margins that are there already are not computed again: remove WORK_DIR/table to start anew.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
from layers import LAYER, RESULTS, TASKS, find_saes, load, machine, measure
from methods import (
    READINGS,
    Data,
    Method,
    Trained,
    accuracy_cell,
    chosen,
    correct,
    data_at,
    difference_cell,
    difference_of_means,
    length,
    random,
    representation,
    selected,
    selected_by_effect,
    train,
)
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from tqdm.auto import tqdm

SEEDS = range(5)
REFERENCE = "SparseRM: linear, margin"
TRL = {"TRL RewardTrainer, LoRA": "lora", "TRL RewardTrainer, full": "full"}


def rows(sae: SparseAutoencoder) -> dict[str, tuple[Method, str, str]]:
    """By name: method, loss and head."""
    read = {
        "SparseRM": chosen(sae),
        "SparseRM, K = 128": selected(sae),
        "dense": representation("mean"),
        "dense, mean and last": representation("mean", "last"),
    }
    losses = {"margin": "margin", "Bradley-Terry": "bradley_terry", "cross-entropy": "bce"}
    methods = {
        f"{name}: {head}, {loss}": (method, losses[loss], head.lower())
        for name, method in read.items()
        for head in ("linear", "MLP")
        for loss in losses
    }
    others = {
        "256 features by paired effect": selected_by_effect(sae),
        "decoder directions as they are (paper)": selected(sae, directions="raw"),
        "random directions": random,
        "SAE activations, mean": selected(sae, READINGS[2:3]),
        "SAE activations, mean and largest": selected(sae, READINGS[2:]),
        "difference of means": difference_of_means,
        "length alone": length,
    }
    return methods | {name: (method, "margin", "linear") for name, method in others.items()}


def shipped_bytes(name: str, d_model: int, run: Trained) -> int:
    """What has to be shipped beside the base model: the head, and what its features are read with, in float32."""
    if name.startswith(("dense", "difference", "length")):
        return 4 * run.parameters
    features = run.head.layers[0][0].shape[1]  # a direction for each projection, an encoder column for each activation
    return 4 * (run.parameters + features * d_model)


def fit(name: str, method: Method, loss: str, head_type: str, fitted: Data, test: Data) -> dict:
    """What the table says of a method on a task, with the margins of every test pair."""
    runs = [train(method, fitted, seed, loss, head_type) for seed in SEEDS]
    return {
        "margins": [run.margins(test).tolist() for run in runs],
        "trainable_parameters": runs[0].parameters,
        "seconds": float(np.mean([run.seconds for run in runs])),
        "bytes": shipped_bytes(name, fitted.texts.shards[0].mean.shape[1], runs[0]),
    }


def main(data: Path, work: Path) -> None:
    texts, sae = load(data, work), find_saes(work)[LAYER]
    methods = rows(sae)
    results: dict[str, dict[str, dict]] = {name: {} for name in [*methods, *TRL]}
    for task in TASKS:
        fitted, test = data_at(texts[task, "train"], LAYER), data_at(texts[task, "test"], LAYER)
        for name, (method, loss, head_type) in tqdm(methods.items(), desc=task):
            compute = partial(fit, name, method, loss, head_type, fitted, test)
            results[name][task] = measure(work / "table" / f"{task}-{name}.json", compute)
        for name, kind in TRL.items():
            runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "trl").glob(f"{task}-{kind}-*.json"))]
            if runs:
                timed = [run["seconds"] for run in runs if run["seconds"]]
                seconds = float(np.mean(timed)) if timed else None
                margins = [run["margins"] for run in runs]
                results[name][task] = runs[0] | {"margins": margins, "seconds": seconds}
    write(results)


def _sizes(by_task: dict[str, dict], what: str) -> str:
    """A size, by task where it is not the same for all."""
    sizes = [f"{row[what]:,}" for row in by_task.values()]
    return sizes[0] if len(set(sizes)) == 1 else " / ".join(sizes)


def write(results: dict[str, dict[str, dict]]) -> None:
    """Print the table and write it, with the margins of every pair."""
    columns = ["", *TASKS, *(f"{task}, minus SparseRM" for task in TASKS), "runs", "parameters", "seconds", "bytes"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, by_task in results.items():
        cells, differences = [], []
        for task in TASKS:
            margins = np.array(by_task[task]["margins"]) if task in by_task else None
            cells.append("" if margins is None else accuracy_cell(margins))
            reference = np.array(results[REFERENCE][task]["margins"])
            differences.append("" if margins is None or name == REFERENCE else difference_cell(margins, reference))
        if by_task:
            timed = [by_task[task]["seconds"] if task in by_task else None for task in TASKS]
            seconds = " / ".join("-" if one is None else f"{one:.0f}" for one in timed)
            runs = " / ".join(str(len(by_task[task]["margins"])) if task in by_task else "-" for task in TASKS)
            sizes = [_sizes(by_task, what) for what in ("trainable_parameters", "bytes")]
            cost = [runs, sizes[0], seconds, sizes[1]]
            lines.append(f"| {' | '.join([name, *cells, *differences, *cost])} |")
    text = (
        "Accuracy in % on the whole test set (95% interval, Wilson; mean over the runs), then the difference to "
        "SparseRM on the same pairs (paired 95% interval). 1,000 training pairs, SmolLM2-135M-Instruct, layer "
        f"{LAYER}. Runs and seconds by task; seconds to fit, from representations that are there, but for TRL of the "
        f"whole training. Bytes: what is shipped beside the base model. {machine()}. Made by "
        "`python benchmarks/table.py`.\n\n"
    )
    text += "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    summary = {
        name: {
            task: {key: value for key, value in row.items() if key != "margins"}
            | {"accuracy": float(correct(np.array(row["margins"])).mean()), "runs": len(row["margins"])}
            for task, row in by_task.items()
        }
        for name, by_task in results.items()
    }
    (RESULTS / "table.json").write_text(json.dumps({"machine": machine(), "results": summary}, indent=1) + "\n")
    (RESULTS / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
