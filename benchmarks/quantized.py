"""How far rewards and accuracy move when the base model is quantised.

    python benchmarks/quantized.py DATA_DIR

On truthfulness, a reward model is trained on the base model as it is, and on each way of quantising it on loading,
with default settings; its accuracy is that on all test pairs. The first reward model is also loaded quantised, and its
rewards are compared on test responses. Writes `results/quantized.md`.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from layers import FITTED, RESULTS, TASKS, machine
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tqdm.auto import tqdm

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.base_models.quantization import QUANTIZATIONS, quantized_loading
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.scoring.scored_texts import score_texts

TASK = TASKS[0]
RESPONSES = 400  # of test, whose rewards are compared
HEADER = """# Quantised base models

SmolLM2-135M-Instruct, 1,000 pairs of truthfulness, default settings. Accuracy of reward models that were trained on
the quantised base model, on all test pairs; and rewards of the model of the first row when its base model is quantised
on loading, on {responses} test responses: their differences from its own rewards, in standard deviations of these, and
how many pairs change sides. Made by `benchmarks/quantized.py` on {machine}.

| base model | accuracy | weights on disk, MB | difference: mean | largest | pairs that change sides |
|---|---:|---:|---:|---:|---:|"""


def train(data: Path, out: Path, quantization: str) -> SparseRMTrainer:
    """Train, evaluate and save a reward model."""
    trainer = SparseRMTrainer(
        find_base_model(),
        args=SparseRMTrainingConfig(str(out), quantization=quantization, controls=False),
        train_dataset=load_preferences(str(data / TASK / "train.jsonl.gz"), FITTED),
        eval_dataset=load_preferences(str(data / TASK / "test.jsonl.gz")),
    )
    trainer.train()
    trainer.save_model()
    return trainer


def cells(name: str, trainer: SparseRMTrainer) -> list[str]:
    """What the table says of a trained model."""
    size = sum(file.stat().st_size for file in Path(trainer.args.output_dir).glob("model*.safetensors")) / 1e6
    return [name, f"{100 * trainer.metrics['eval_accuracy']:.1f}", f"{size:.0f}"]


def main(data: Path) -> None:
    with TemporaryDirectory() as folder:
        plain = train(data, Path(folder) / "none", "none")
        pairs, dtype = plain.eval_pairs, plain.base_model.dtype
        texts = [pairs.texts[i] for pair in zip(pairs.chosen, pairs.rejected, strict=True) for i in pair][:RESPONSES]
        expected = score_texts(plain.model, texts).rewards
        rows = [[*cells(f"as it is, in {str(dtype).removeprefix('torch.')}", plain), "", "", ""]]
        for name in tqdm(QUANTIZATIONS[1:], desc="ways of quantising"):
            row = cells(f"`{name}`", train(data, Path(folder) / name, name))
            model = SparseRMForSequenceClassification.from_pretrained(
                Path(folder) / "none", **quantized_loading(name, dtype)
            )
            rewards = score_texts(model, texts).rewards
            apart = np.abs(rewards - expected) / expected.std()
            changed = np.sign(rewards[::2] - rewards[1::2]) != np.sign(expected[::2] - expected[1::2])
            rows.append([*row, f"{apart.mean():.3f}", f"{apart.max():.3f}", f"{changed.mean():.1%}"])
    lines = [HEADER.format(responses=RESPONSES, machine=machine()), *(f"| {' | '.join(row)} |" for row in rows)]
    text = "\n".join(lines) + "\n"
    (RESULTS / "quantized.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
