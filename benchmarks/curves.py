"""How accuracy depends on K, layer, pooling, number of pairs, label noise, and on the task that was trained on.

    python benchmarks/curves.py DATA_DIR WORK_DIR

SparseRM beside the dense representation, linear heads, margin loss, measured on all of `test`. Reads what
`layers.py` keeps in WORK_DIR; SparseRM needs an SAE, so its layers are those that `sae_candidates.py` trained one for.
Writes `results/curves.json`, `results/curves.md` and a plot for each curve. What is there already in WORK_DIR/curves
is not computed again.
"""

import json
import sys
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
from layers import LAYER, REST, RESULTS, TASKS, Texts, find_saes, load, load_pairs, machine, measure, represent_at
from methods import (
    READINGS,
    Data,
    Method,
    accuracy,
    accuracy_cell,
    data_at,
    difference_cell,
    representation,
    selected,
    train,
)
from tqdm.auto import tqdm

from sparserm_hf.conversations.tokenized_preferences import TokenizedPreferences
from sparserm_hf.representations.shards import Representations

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOTALS = (8, 16, 32, 64, 128, 256, 512)  # latents, both sides together
PAIRS = (64, 125, 250, 500, 1000)
NOISE = (0.0, 0.1, 0.2, 0.3)
ALL = "all"  # training pairs
SEEDS = range(3)
DENSE = "dense"


def curves(saes: dict, layers: int) -> dict[str, list[tuple[str, float | str, Method, dict]]]:
    """Points of each curve: method, where it stands, how it is fitted, and on what."""
    sae, dense = saes[LAYER], representation("mean")
    ours = selected(sae)
    both = {"SparseRM": ours, DENSE: dense}
    points: dict[str, list] = {
        "latents": [("SparseRM", n, selected(sae, k=n // 2), {}) for n in TOTALS]
        + [("four readings", n, selected(sae, READINGS, n // 2), {}) for n in TOTALS]
        + [(DENSE, n, dense, {}) for n in TOTALS],
        "layer": [("SparseRM", layer, selected(saes[layer]), {"layer": layer}) for layer in sorted(saes)]
        + [(DENSE, layer, dense, {"layer": layer}) for layer in range(2, layers + 1, 2)],
        "pooling": [
            (name, pooling, method, {"pooling": pooling})
            for pooling in ("last", "mean", "response_mean")
            for name, method in both.items()
        ],
        "pairs": [(name, n, method, {"pairs": n}) for n in (*PAIRS, ALL) for name, method in both.items()],
        "label noise": [(name, share, method, {"noise": share}) for share in NOISE for name, method in both.items()],
    }
    return points


@cache
def all_pairs(folder: Path, task: str) -> TokenizedPreferences:
    return load_pairs(folder, task, "train")


def all_training(folder: Path, texts: Texts, task: str) -> Data:
    """All training pairs of a task: representations of the first thousand and of the rest lie in two places."""
    first = data_at(texts, LAYER)
    pairs, rest = represent_at(folder, "train", REST)[task]
    count = len(first.texts.order)
    order = np.concatenate([first.texts.order, count + rest.order])
    whole = all_pairs(folder, task)
    place = {text: i for i, text in enumerate([*texts.pairs.texts, *pairs.texts])}
    number = np.array([place[text] for text in whole.texts])
    return Data(
        Representations([*first.texts.shards, *rest.shards], order),
        np.concatenate([first.lengths, pairs.lengths]),
        number[whole.chosen],
        number[whole.rejected],
        np.array(whole.groups),
    )


def margins_at(
    folder: Path, texts: dict[tuple[str, str], Texts], task: str, tests: tuple[str, ...], method: Method, how: dict
) -> dict:
    """Margins on the test pairs of some tasks, a run for each seed; the seeds draw folds and noise."""

    def data(name: str, split: str) -> Data:
        return data_at(texts[name, split], how.get("layer", LAYER), how.get("pooling", "response_mean"))

    if how.get("pairs") == ALL:
        fitted = all_training(folder, texts[task, "train"], task)
    else:
        fitted = data(task, "train").first(how.get("pairs", 1000))
    runs = [train(method, fitted.with_noise(how.get("noise", 0.0), seed), seed) for seed in SEEDS]
    return {name: [run.margins(data(name, "test")).tolist() for run in runs] for name in tests}


def plot(folder: Path, name: str, values: dict[str, dict[str, dict]]) -> None:
    """A panel a task: accuracy and its interval against the points of the curve."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(12, 3.6), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for number, (method, points) in enumerate(values[task].items()):
            x: list = list(points)
            if name != "pooling":
                x = [float(len(all_pairs(folder, task)) if point == ALL else point) for point in points]
            mean, low, high = np.array([accuracy(np.array(margins)) for margins in points.values()]).T
            if name == "pooling":  # no order among them
                place = np.arange(len(x)) + 0.1 * number
                axis.errorbar(place, mean, [mean - low, high - mean], fmt="o", capsize=3, label=method)
                axis.set_xticks(np.arange(len(x)), x)
                continue
            axis.plot(x, mean, marker="o", label=method)
            axis.fill_between(x, low, high, alpha=0.12)
        if name in ("latents", "pairs"):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set(title=task, xlabel=name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on test, %")
    axes[0].legend(fontsize=8)
    path = RESULTS / f"curve_{name.replace(' ', '_')}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(name: str, values: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row for each method and point."""
    lines = [f"\n## {name.capitalize()}\n", f"| | {name} | {' | '.join(TASKS)} |", "|---" * (2 + len(TASKS)) + "|"]
    for method, points in values[TASKS[0]].items():
        for point in points:
            cells = [accuracy_cell(np.array(values[task][method][point])) for task in TASKS]
            lines.append(f"| {method} | {point} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def transfer_table(values: dict[str, dict[str, dict]]) -> str:
    """Markdown: trained on the row's task, tested on the column's; then SparseRM minus dense on the same pairs."""
    lines = ["\n## Transfer\n", f"| trained on | | {' | '.join(TASKS)} |", "|---" * (2 + len(TASKS)) + "|"]
    for task in TASKS:
        for method, by_test in values[task].items():
            cells = [accuracy_cell(np.array(by_test[name])) for name in TASKS]
            lines.append(f"| {task} | {method} | {' | '.join(cells)} |")
        ours, dense = values[task]["SparseRM"], values[task][DENSE]
        cells = [difference_cell(np.array(ours[name]), np.array(dense[name])) for name in TASKS]
        lines.append(f"| {task} | SparseRM minus dense | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(data: Path, work: Path) -> None:
    texts, saes = load(data, work), find_saes(work)
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for name, points in curves(saes, len(texts[TASKS[0], "train"].pooled["mean"])).items():
        found[name] = {task: {} for task in TASKS}
        for task in TASKS:
            for method_name, point, method, how in tqdm(points, desc=f"{name}, {task}"):
                same = {} if method_name == DENSE and name == "latents" else {"at": point}  # K is nothing to it
                key = "-".join(map(str, [name, task, method_name, *same.values()]))
                compute = partial(margins_at, data, texts, task, (task,), method, how)
                margins = measure(work / "curves" / f"{key}.json", compute)[task]
                found[name][task].setdefault(method_name, {})[str(point)] = margins
        plot(data, name, found[name])
    transfer: dict[str, dict[str, dict]] = {}
    for task in TASKS:
        for method_name, method in (("SparseRM", selected(saes[LAYER])), (DENSE, representation("mean"))):
            path = work / "curves" / f"transfer-{task}-{method_name}.json"
            compute = partial(margins_at, data, texts, task, TASKS, method, {})
            transfer.setdefault(task, {})[method_name] = measure(path, compute)
    text = (
        "Accuracy in % on the whole test set (95% interval, Wilson; mean of "
        f"{len(SEEDS)} seeds of folds and noise), linear head, margin loss; 1,000 training pairs, layer "
        f"{LAYER}, 256 latents unless said otherwise. {machine()}. Made by `python benchmarks/curves.py`.\n"
    )
    text += "".join(table(name, values) for name, values in found.items()) + transfer_table(transfer)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "curves.md").write_text(text)
    everything = {name: summary(values) for name, values in (found | {"transfer": transfer}).items()}
    (RESULTS / "curves.json").write_text(json.dumps({"machine": machine(), "curves": everything}, indent=1) + "\n")
    print(text)


def summary(values: dict[str, dict[str, dict]]) -> dict:
    """Accuracies in %, with their intervals, without the margins of every pair."""
    return {
        task: {
            method: {point: accuracy_cell(np.array(margins)) for point, margins in points.items()}
            for method, points in methods.items()
        }
        for task, methods in values.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
