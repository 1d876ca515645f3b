"""Which pair to label next: labels needed when the ensemble picks, beside random order and diversity.

    python benchmarks/labelling.py DATA_DIR WORK_DIR [--pairs 300] [--test_pairs 200] [--seeds 5]

Replays the labels of each task in the order in which they would be asked for: ten random pairs of ten prompts, then
the pairs that the ensemble doubts most (five at a time, to save fits), pairs in random order, or the pair whose
difference of responses is farthest from those of all pairs before it (farthest-first traversal; cosine distance,
without sign). After so many labels, the head of `sparserm label` is fitted and measured on test pairs. Writes
`results/labelling.md`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from layers import RESULTS, TASKS, machine, make_trainer

from sparserm_hf.evaluation import pair_accuracy
from sparserm_hf.labelling.learner import Answer, Pairs, learn, pick
from sparserm_hf.runtime import as_numpy
from sparserm_hf.training import FEWEST_PROMPTS, RepresentedTexts

STEP = 5  # pairs that are picked by one fit
POINTS = (10, 20, 40, 60, 80, 120, 160, 200)
STRATEGIES = ("uncertainty", "random", "diversity")


class Replay:
    """The pairs of a task, and their labels."""

    def __init__(self, args: argparse.Namespace, task: str):
        trainer = make_trainer(args, task, args.test_pairs)
        pool, self.test = trainer.train_pairs, trainer.eval_pairs
        decoder = as_numpy(trainer.sae.autoencoder.W_dec)
        self.texts = RepresentedTexts.of(trainer.represent(pool.texts), decoder)
        self.test_vectors = trainer.represent(self.test.texts).read(lambda shard: shard.mean)
        self.pairs = Pairs(np.stack([pool.chosen, pool.rejected], 1), np.array(pool.groups))

    def run(self, strategy: str, seed: int) -> list[float]:
        """Accuracy on the test pairs after each number of labels."""
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(self.pairs.texts)).tolist()
        prompts = self.pairs.groups[order]
        first = np.sort(np.unique(prompts, return_index=True)[1])[:FEWEST_PROMPTS]  # ten pairs of ten prompts
        order = [order[i] for i in first] + [pair for i, pair in enumerate(order) if i not in first]
        if strategy == "diversity":
            order = self._farthest_first(order[:FEWEST_PROMPTS])
        answers, left, found = [Answer(pair, 0) for pair in order[:FEWEST_PROMPTS]], order[FEWEST_PROMPTS:], []
        for point in POINTS:
            while len(answers) < point:
                picked = left[:STEP]
                if strategy == "uncertainty":
                    learned, rest = learn(self.texts, self.pairs, answers, seed=seed), list(left)
                    picked = []
                    for _ in range(min(STEP, len(rest))):
                        picked.append(pick(self.pairs, np.array(rest), answers, learned, draw))
                        rest.remove(picked[-1])
                answers += [Answer(pair, 0) for pair in picked]
                left = [pair for pair in left if pair not in picked]
            rewards = learn(self.texts, self.pairs, answers, seed=seed).fitted.rewards(self.test_vectors)
            found.append(100 * pair_accuracy(rewards[self.test.chosen] - rewards[self.test.rejected]))
        return found

    def _farthest_first(self, start: list[int]) -> list[int]:
        vectors = self.texts.vectors[self.pairs.texts].astype(np.float64)
        differences = vectors[:, 0] - vectors[:, 1]
        differences /= np.linalg.norm(differences, axis=1, keepdims=True)
        order = list(start)
        nearest = np.abs(differences @ differences[order].T).max(1)
        while len(order) < len(differences):
            nearest[order] = np.inf
            order.append(int(nearest.argmin()))
            nearest = np.maximum(nearest, np.abs(differences @ differences[order[-1]]))
        return order


def labels_needed(accuracies: np.ndarray, goal: float) -> str:
    """Labels after which a curve reaches an accuracy for good, between the points on a straight line."""
    below = np.flatnonzero(accuracies < goal)
    if not len(below):
        return f"≤ {POINTS[0]}"
    last = below[-1]
    if last == len(POINTS) - 1:
        return f"> {POINTS[-1]}"
    return f"{np.interp(goal, accuracies[last : last + 2], POINTS[last : last + 2]):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--test_pairs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    lines, needed, seconds = [], [], []
    for task in TASKS:
        replay, curves = Replay(args, task), {}
        started = time.perf_counter()
        learn(replay.texts, replay.pairs, [Answer(pair, 0) for pair in range(POINTS[-1])])
        seconds.append(time.perf_counter() - started)
        for strategy in STRATEGIES:
            runs = np.array([replay.run(strategy, seed) for seed in range(args.seeds)])
            curves[strategy] = runs.mean(0)
            both = np.stack([runs.mean(0), runs.std(0, ddof=1)], 1).tolist()
            cells = " | ".join(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in both)
            lines.append(f"| {task} | {strategy} | {cells} |")
            print(lines[-1], flush=True)
        goal = curves["random"][-1]
        cells = " | ".join(labels_needed(curves[strategy], goal) for strategy in STRATEGIES)
        needed.append(f"| {task} | {goal:.1f} | {cells} |")
    text = "\n".join(
        [
            f"Labels replayed from {args.pairs} training pairs of each task, SmolLM2-135M-Instruct, measured on "
            f"{args.test_pairs} test pairs, mean and standard deviation of {args.seeds} seeds. A fit to "
            f"{POINTS[-1]} labels with its ensemble took {min(seconds):.1f} to {max(seconds):.1f} s. {machine()}. "
            f"Made by `python benchmarks/labelling.py DATA_DIR WORK_DIR --pairs {args.pairs} --test_pairs "
            f"{args.test_pairs} --seeds {args.seeds}`.\n",
            "Accuracy % after so many labels:\n",
            f"| task | order | {' | '.join(map(str, POINTS))} |",
            "|---" * (len(POINTS) + 2) + "|",
            *lines,
            f"\nLabels needed for the accuracy that random order has after {POINTS[-1]}:\n",
            f"| task | accuracy % | {' | '.join(STRATEGIES)} |",
            "|---" * (len(STRATEGIES) + 2) + "|",
            *needed,
            "",
        ]
    )
    (RESULTS / "labelling.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
