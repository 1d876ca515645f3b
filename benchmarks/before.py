"""The table before and after 'make it win': what the layer, the SAE and the pooling brought, and how far dense goes.

    git archive b9ee90c:src/sparserm_hf/sae smollm2-135m-instruct | tar -x -C WORK_DIR
    python benchmarks/before.py DATA_DIR WORK_DIR

Before: the SAE that was shipped first (layer 15, the middle, as in the paper) and the last token, the natural reading
of a pooling that the paper does not report. After: what `sparserm train` does by default. Linear head, margin loss,
256 latents, 1,000 training pairs, 5 seeds, measured on all of `test`. Writes `results/before.json` and `.md`.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
from layers import FITTED, LAYER, RESULTS, TASKS, machine, measure, represent_at
from methods import Data, Method, accuracy, accuracy_cell, data_of, difference_cell, representation, selected, train
from tqdm.auto import tqdm

from sparserm_hf.sae.formats import load_sae
from sparserm_hf.sae.presets import SHIPPED_SAE

SEEDS = range(5)
POOLINGS = {"last token": "last", "mean over the response": "mean"}
NOW = f"SparseRM, layer {LAYER}, mean over the response"


def margins_of(method: Method, fitted: Data, test: Data) -> dict:
    """(5, P) margins of the test pairs."""
    return {"margins": [train(method, fitted, seed).margins(test).tolist() for seed in SEEDS]}


def main(data: Path, work: Path) -> None:
    results: dict[str, dict[str, np.ndarray]] = {}
    for source in (work / SHIPPED_SAE.name, SHIPPED_SAE):
        loaded = load_sae(str(source))
        splits = [represent_at(data, split, rows, source) for split, rows in (("train", FITTED), ("test", "train"))]
        for pooling, short in POOLINGS.items():
            methods = {
                f"SparseRM, layer {loaded.layer}, {pooling}": selected(loaded.autoencoder, (f"{short}_projection",)),
                f"dense, layer {loaded.layer}, {pooling}": representation(short),
            }
            for name, method in methods.items():
                results[name] = {}
                for task in tqdm(TASKS, desc=name):
                    fitted, test = (data_of(texts, pairs) for pairs, texts in (split[task] for split in splits))
                    compute = partial(margins_of, method, fitted, test)
                    kept = measure(work / "before" / f"{task}-{name}.json", compute)
                    results[name][task] = np.array(kept["margins"])
    write(results)


def write(results: dict[str, dict[str, np.ndarray]]) -> None:
    """Print the table and write it."""
    columns = ["", *TASKS, *(f"{task}, minus the last of SparseRM" for task in TASKS)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, by_task in results.items():
        cells = [accuracy_cell(by_task[task]) for task in TASKS]
        cells += ["" if name == NOW else difference_cell(by_task[task], results[NOW][task]) for task in TASKS]
        lines.append(f"| {' | '.join([name, *cells])} |")
    text = (
        "Accuracy in % on the whole test set (95% interval, Wilson; mean of 5 seeds), then the difference to the last "
        "row of SparseRM on the same pairs (paired 95% interval): first the SAE of b9ee90c, then the shipped one. "
        f"Linear head, margin loss, 256 latents, 1,000 training pairs. {machine()}. Made by "
        "`python benchmarks/before.py`.\n\n"
    )
    text += "\n".join(lines) + "\n"
    summary = {name: {task: accuracy(by_task[task]) for task in TASKS} for name, by_task in results.items()}
    (RESULTS / "before.json").write_text(json.dumps({"machine": machine(), "results": summary}, indent=1) + "\n")
    (RESULTS / "before.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
