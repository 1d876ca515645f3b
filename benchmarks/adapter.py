"""SparseRM with an adapter: accuracy, time, and what becomes of the latents' meaning.

    python benchmarks/adapter.py DATA_DIR WORK_DIR [--tasks ...] [--seeds 0 1 2 3 4] [--pairs 1000 ...]

The package's own training (`sparserm train --adapter_rank 8`) on the first pairs of `train`, measured on all of
`test`. The seed decides the folds, the held-out prompts, the adapter's first weights and the order of the pairs. Each
run leaves `results/adapter/TASK-PAIRS-SEED.json` with the margins of every test pair, with and without the adapter; a
run that is there is not done again, and a killed run goes on where it stopped. `table.py` and `pair_curve.py` read
them.
"""

import argparse
from functools import partial
from pathlib import Path

from layers import RESULTS, TASKS, machine, measure

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
    rows = [load_preferences(str(data / task / f"{split}.jsonl.gz"), of) for split, of in splits(pairs)]
    trainer = SparseRMTrainer(find_base_model(), None, args, *rows)
    metrics = trainer.train()
    assert trainer.evaluation is not None
    found = trainer.evaluation.margins
    margins = {name: found[name].round(6).tolist() for name in (RowName.REWARD_MODEL, RowName.FROZEN)}
    return {"margins": margins, "metrics": metrics, "machine": machine()}


def splits(pairs: int) -> list[tuple[str, str]]:
    """Names and rows of the files to train and to test on."""
    return [("train", f"train[:{pairs}]"), ("test", "train")]


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
                accuracies = {name: 100 * pair_accuracy(result["margins"][name]) for name in result["margins"]}
                seconds = result["metrics"]["adapter_seconds"]
                print(f"{task}, {pairs} pairs, seed {seed}: {accuracies}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
