"""What was tried to make SparseRM win, compared without looking at `test`.

    python benchmarks/tried.py DATA_DIR WORK_DIR

Trained on the first 1,000 training pairs of each task, judged twice: by cross-validation inside them, and on the
training pairs that are left. Linear heads, margin loss and 256 latents unless named otherwise, mean of 3 seeds.
Reads what `layers.py` keeps in WORK_DIR; writes `results/tried.json` and `results/tried.md`.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
from layers import LAYER, REST, RESULTS, TASKS, find_saes, load, machine, measure, represent_at
from methods import (
    READINGS,
    Data,
    Method,
    data_at,
    data_of,
    random,
    representation,
    selected,
    selected_by_effect,
    train,
    with_last,
)
from tqdm.auto import tqdm

from sparserm_hf.evaluation.metrics import pair_accuracy

SEEDS = range(3)


def variants(sae) -> dict[str, tuple[Method, dict[str, str]]]:
    """By name: what is read, and how the head is fitted where not by default."""
    mean, last, mean_activation, max_activation = READINGS
    readings = {
        "projection of the mean (the default)": (mean,),
        "projections of mean and last token": (mean, last),
        "projection of the mean, mean activation": (mean, mean_activation),
        "projection of the mean, largest activation": (mean, max_activation),
        "projections of mean and last token, largest activation": (mean, last, max_activation),
        "mean and largest activation": (mean_activation, max_activation),
        "all four readings": READINGS,
    }
    linear = {
        **{name: selected(sae, what) for name, what in readings.items()},
        "projection of the mean, decoder directions as they are (the paper's)": selected(sae, directions="raw"),
        "all four readings of 128 latents": selected(sae, READINGS, 64),
        "all four readings of 512 latents": selected(sae, READINGS, 256),
        "256 projections of the mean by paired effect": selected_by_effect(sae, (mean,)),
        "256 features by paired effect, of all readings": selected_by_effect(sae),
        "control: dense, mean": representation("mean"),
        "control: dense, mean and last": representation("mean", "last"),
        "control: random directions": random,
    }
    found: dict[str, tuple[Method, dict[str, str]]] = {}
    for name, method in linear.items():
        found[name] = (method, {})
        found[f"{name}, Bradley-Terry"] = (method, {"loss": "bradley_terry"})
    return found


def judge(
    method: Method, how: dict[str, str], fitted: dict[str, Data], rest: dict[str, Data]
) -> dict[str, dict[str, float]]:
    """By task, accuracy in cross-validation and on the training pairs that are left."""
    measured = {}
    for task in TASKS:
        runs = [train(method, fitted[task], seed, **how) for seed in SEEDS]
        measured[task] = {
            "cross-validation": float(np.mean([run.head.validation_accuracy for run in runs])),
            "rest of train": float(np.mean([pair_accuracy(run.margins(rest[task])) for run in runs])),
        }
    return measured


def main(data: Path, work: Path) -> None:
    texts, sae = load(data, work), find_saes(work)[LAYER]
    fitted = {task: data_at(texts[task, "train"], LAYER) for task in TASKS}
    del texts
    left, last = (represent_at(data, "train", REST, pooling) for pooling in ("response_mean", "last"))
    rest = {task: data_of(with_last(texts, last[task][1]), pairs) for task, (pairs, texts) in left.items()}
    found: dict[str, dict] = {}
    for name, (method, how) in tqdm(variants(sae).items()):
        found[name] = measure(work / "tried" / f"{name}.json", partial(judge, method, how, fitted, rest))
    (RESULTS / "tried.json").write_text(json.dumps({"machine": machine(), "results": found}, indent=1) + "\n")
    judged = ("cross-validation", "rest of train")
    heads = [f"{task}, {how}" for how in judged for task in (*TASKS, "mean")]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, by_task in found.items():
        cells = []
        for how in judged:
            values = [100 * by_task[task][how] for task in TASKS]
            cells += [*values, float(np.mean(values))]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in cells)} |")
    pairs = ", ".join(f"{len(rest[task].chosen)} of {task}" for task in TASKS)
    text = (
        "Accuracy in %, trained on the first 1,000 training pairs: cross-validated inside them, and on the rest "
        f"of `train` ({pairs}). Linear head, margin loss, 256 latents unless named otherwise; mean of 3 seeds. Made "
        "by `python benchmarks/tried.py`.\n\n" + "\n".join(lines) + "\n"
    )
    (RESULTS / "tried.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
