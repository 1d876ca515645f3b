"""What an ensemble knows: does its deviation rise away from the training pairs?

    python benchmarks/uncertainty.py DATA_DIR WORK_DIR [--pairs 1000] [--texts 400]

Trains a reward model with an ensemble of 20 heads for each task. For each model, the test responses of its own task
stand against those of the other tasks and against responses made of the chat template's marks, as text. The area
under the ROC curve (AUROC) tells how often a foreign response has the larger value than one of its own: 0.5 is chance.
Beside the deviation stand what `sparserm monitor` looks at, for a single response: the share of the features outside
their range in training, and the disagreement of the dense twin; and the number of tokens. Writes
`results/uncertainty.md`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from layers import RESULTS, TASKS, machine, make_trainer
from sklearn.metrics import roc_auc_score

from sparserm_hf import SparseRMTrainer, load_preferences
from sparserm_hf.conversations import ChatFormat, TokenizedText
from sparserm_hf.evaluation import find_twin, reward_represented, shard_features
from sparserm_hf.evaluation.attacks import attacks_on
from sparserm_hf.runtime import as_numpy
from sparserm_hf.scoring import further_scores

HEADS = 20
PROMPTS = 20  # on which each attack is tried


def train(args: argparse.Namespace, task: str) -> SparseRMTrainer:
    trainer = make_trainer(args, task, args.texts // 2, ensemble=HEADS)
    trainer.eval_pairs, kept = None, trainer.eval_pairs  # no evaluation of its own
    trainer.train()
    trainer.eval_pairs = kept
    return trainer


def attacks(args: argparse.Namespace, task: str, trainer: SparseRMTrainer) -> list[TokenizedText]:
    tokenizer = trainer.processing_class
    written = attacks_on(ChatFormat.of(tokenizer), tokenizer.bos_token, tokenizer.eos_token)
    rows = load_preferences(str(args.data / task / "test.jsonl.gz"), f"train[:{PROMPTS}]")
    responses = [{"role": "assistant", "content": text} for text in written.values()]
    return [trainer.encoder([*row["prompt"], response]) for row in rows for response in responses]


def measure(trainer: SparseRMTrainer, texts: list[TokenizedText]) -> dict[str, np.ndarray]:
    """(N,) values of texts by what they measure; the larger, the more foreign a text should be."""
    model, reference, cached = trainer.model, trainer.reference, trainer.represent(texts)
    assert model is not None and reference is not None
    features = cached.read(lambda shard: as_numpy(shard_features(model, shard)))
    lengths = np.array([len(text.ids) for text in texts])
    twin = find_twin(trainer.controls)
    ours, theirs = (
        (of - mean) / std
        for of, (mean, std) in (
            (reward_represented(model, cached), reference.rewards),
            (twin.rewards(cached, lengths, []), reference.twin[:2]),
        )
    )
    return {
        "deviation": np.array([of["deviation"] for of in further_scores(model, features)]),
        "outside": ((features < reference.low) | (features > reference.high)).mean(1),
        "twin": np.abs(ours - theirs),
        "tokens": np.array([len(text.response) for text in texts], dtype=float),
    }


def auroc(own: dict[str, np.ndarray], foreign: dict[str, np.ndarray]) -> list[float]:
    labels = lambda name: np.repeat([0, 1], [len(own[name]), len(foreign[name])])  # noqa: E731
    return [float(roc_auc_score(labels(name), np.concatenate([own[name], foreign[name]]))) for name in own]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=400, help="test responses of each task")
    args = parser.parse_args()
    trainers = {task: train(args, task) for task in TASKS}
    lines = []
    for task, trainer in trainers.items():
        own = measure(trainer, trainer.eval_pairs.texts)
        others: dict[str, Callable[[], list[TokenizedText]]] = {
            other: lambda other=other: trainers[other].eval_pairs.texts for other in TASKS if other != task
        }
        others["template's marks"] = lambda task=task, trainer=trainer: attacks(args, task, trainer)
        for name, texts in others.items():
            cells = " | ".join(f"{value:.2f}" for value in auroc(own, measure(trainer, texts())))
            lines.append(f"| {task} | {name} | {cells} |")
            print(lines[-1], flush=True)
    text = "\n".join(
        [
            f"Reward models with an ensemble of {HEADS} heads, SmolLM2-135M-Instruct, {args.pairs} training pairs, "
            f"{args.texts} test responses of each task. {machine()}. Made by `python benchmarks/uncertainty.py "
            f"DATA_DIR WORK_DIR --pairs {args.pairs} --texts {args.texts}`.\n",
            "AUROC of telling foreign responses from test responses of the model's own task; 0.5 is chance:\n",
            "| trained on | foreign responses | deviation | features outside | twin | tokens |",
            "|---" * 6 + "|",
            *lines,
            "",
        ]
    )
    (RESULTS / "uncertainty.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
