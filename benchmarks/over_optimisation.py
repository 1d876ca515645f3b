"""What optimising a reward does to the reward that counts: best-of-n, judged by a reward model of another base.

    python benchmarks/over_optimisation.py WORK_DIR --policy P --questions Q.jsonl --judge J --reward_models A B ...

The policy writes `--samples` responses to each question. Of n of them, each reward model picks the best one, and the
judge's reward of that response is the gold reward; its mean over all choices of n responses is computed exactly.
Best-of-n is log(n) - (n - 1) / n nats away from the policy (Gao et al., 2023, arXiv 2210.10760). A reward model is the
folder of a SparseRM or of another sequence classifier; `FOLDER:dense` is the dense control of a SparseRM.
`over_optimisation_models.py` trains a set of them. Take a WORK_DIR for each policy and its questions: a killed run
goes on there.

Writes `results/over_optimisation.md`, with the responses that each SparseRM overrates most and the latents behind
them, and the figure `docs/over_optimisation.png`; `--output` and `--figure` name other files.
"""

import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from layers import RESULTS, machine, measure
from scipy.special import gammaln
from scipy.stats import bootstrap

from sparserm_hf import explain, load_preferences
from sparserm_hf.align.policy import Policy
from sparserm_hf.align.questions import read_questions
from sparserm_hf.align.responses import conversations, write_responses
from sparserm_hf.align.settings import AlignmentConfig
from sparserm_hf.conversations import Messages, row_name
from sparserm_hf.evaluation import SavedRewardModel, find_twin, reward_represented
from sparserm_hf.explanations.compared_models import is_sparserm
from sparserm_hf.runtime import preferred_dtype, process_state
from sparserm_hf.scoring import ClassifierRewardModel

DENSE = ":dense"
HEADER = ("| question | response | reward | gold | raised by |", "|---" * 5 + "|")
FIGURE = Path(__file__).parents[1] / "docs" / "over_optimisation.png"
SHOWN = 3  # overrated responses of each SparseRM, and latents of each


def sample(args: argparse.Namespace) -> list[Messages]:
    """The policy's responses to each question, one question after the other, with their prompts."""
    config = AlignmentConfig(
        str(args.work),
        pairs="best-of-n",
        num_samples=args.samples,
        max_new_tokens=args.tokens,
        temperature=args.temperature,
        generation_batch_size=args.samples,
    )
    questions = read_questions(load_preferences(str(args.questions)))[: args.number]
    policy = Policy.load(args.policy, process_state().device)
    policy.model.to(preferred_dtype(policy.model.device))
    return conversations(write_responses(policy, questions, config, 0, args.work / "responses.jsonl"))


def rewards_of(name: str, texts: list[Messages], cache: Path) -> list[float]:
    """The reward of each text."""
    folder = name.removesuffix(DENSE)
    if not is_sparserm(folder):
        return ClassifierRewardModel.load(folder, process_state().device)(texts).tolist()
    saved = SavedRewardModel.load(folder)
    encoder = saved.encoder()
    encoded = [encoder(text, row_name(number)) for number, text in enumerate(texts, 1)]
    represented = saved.represent(encoded, cache)
    if name == folder:
        return reward_represented(saved.model, represented).tolist()
    twin = find_twin(saved.controls)
    assert twin is not None, f"{folder} has no dense control"
    return twin.rewards(represented, np.zeros(len(texts)), []).tolist()


def standardised(rewards: np.ndarray) -> np.ndarray:
    """(questions, N) rewards in standard deviations from the mean response to the same question."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / centred.std()


def best_of(n: int, picked_by: np.ndarray, judged_by: np.ndarray) -> np.ndarray:
    """(questions,) mean reward by `judged_by` of the response with the largest `picked_by` among n of N, exactly."""
    total = picked_by.shape[1]
    rank = np.arange(n, total + 1)  # from the lowest; the k-th is the best of n in C(k - 1, n - 1) of C(N, n) choices

    def log_choices(of: np.ndarray | int, which: int) -> np.ndarray:
        return gammaln(np.add(of, 1)) - gammaln(which + 1) - gammaln(np.subtract(of, which) + 1)

    weights = np.exp(log_choices(rank - 1, n - 1) - log_choices(total, n))
    ranked = np.take_along_axis(judged_by, picked_by.argsort(1), 1)
    return ranked[:, n - 1 :] @ weights


def interval(of_questions: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean over questions."""
    found = bootstrap((of_questions,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def with_interval(of_questions: np.ndarray) -> str:
    """The mean over questions with its 95% interval, as text."""
    low, high = interval(of_questions)
    return f"{of_questions.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def overrated(name: str, ours: np.ndarray, gold: np.ndarray, texts: list[Messages]) -> list[str]:
    """The picked responses that the judge likes least beside the reward model, as rows of a table."""
    saved, lines = SavedRewardModel.load(name), []
    picked = ours.argmax(1)
    rows = np.arange(len(picked))
    for question in (gold - ours)[rows, picked].argsort()[:SHOWN]:
        i = int(picked[question])
        messages = texts[question * ours.shape[1] + i]
        latents = explain(saved.model, saved.tokenizer, messages).latents
        raised = sorted(latents, key=lambda latent: -latent.contribution)[:SHOWN]
        why = ", ".join(f"{latent.latent} {latent.name or ''} ({latent.contribution:+.2f})" for latent in raised)
        said = [" ".join(messages[j]["content"].split()).replace("|", "\\|") for j in (-2, -1)]
        lines.append(f"| {said[0]} | {said[1]} | {ours[question, i]:+.1f} | {gold[question, i]:+.1f} | {why} |")
    return lines


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], distance: np.ndarray, path: Path) -> None:
    """A panel for each reward model: its own reward and the gold reward of what it picks, (n, questions) each."""
    figure, panels = plt.subplots(
        1, len(curves), figsize=(2.4 * len(curves), 2.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (name, (own, gold)) in zip(panels[0], curves.items(), strict=True):
        low, high = np.transpose([interval(of) for of in gold])
        panel.plot(distance, own.mean(1), "--", color="tab:gray", label="reward of the model")
        panel.plot(distance, gold.mean(1), color="tab:blue", label="gold reward")
        panel.fill_between(distance, low, high, color="tab:blue", alpha=0.2)
        panel.axhline(0, color="black", linewidth=0.5)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("KL (nats)")
    panels[0, 0].set_ylabel("gain (standard deviations)")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--questions", type=Path, required=True, help="rows with a `prompt`, such as preference pairs")
    parser.add_argument("--judge", required=True)
    parser.add_argument("--reward_models", nargs="+", required=True)
    parser.add_argument("--number", type=int, default=32, help="number of questions")
    parser.add_argument("--samples", type=int, default=256, help="responses to each question")
    parser.add_argument("--tokens", type=int, default=40, help="largest number of tokens of a response")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--output", type=Path, default=RESULTS / "over_optimisation.md")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    texts = sample(args)
    rewards = {}
    for name in [args.judge, *args.reward_models]:
        path = args.work / "rewards" / f"{name.replace('/', '-')}.json"
        found = measure(path, lambda name=name: {"rewards": rewards_of(name, texts, args.work / "cache")})
        rewards[name] = standardised(np.reshape(found["rewards"], (-1, args.samples)))
    gold = rewards[args.judge]
    sizes = [2**power for power in range(args.samples.bit_length()) if 2**power <= args.samples]
    distance = np.log(sizes) - (np.array(sizes) - 1) / sizes
    curves, table, shown = {}, [], []
    for name in args.reward_models:
        own, judged = (np.array([best_of(n, rewards[name], by) for n in sizes]) for by in (rewards[name], gold))
        curves[Path(name).name] = own, judged
        first = next(iter(curves.values()))[1]
        cells = [with_interval(of) for of in (judged[-1], judged[-1] - first[-1])]
        agrees = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(rewards[name], gold, strict=True)])
        best = sizes[int(judged.mean(1).argmax())]
        table.append(f"| {Path(name).name} | {agrees:.2f} | {own[-1].mean():+.2f} | {' | '.join(cells)} | {best} |")
        if not name.endswith(DENSE) and is_sparserm(name):
            shown += [f"\n`{Path(name).name}`:\n", *HEADER]
            shown += overrated(name, rewards[name], gold, texts)
    draw(curves, distance, args.figure)
    lines = [
        f"{len(gold)} questions, {args.samples} responses to each of at most {args.tokens} tokens at temperature "
        f"{args.temperature}, the judge {Path(args.judge).name}. {machine()}.\n",
        f"Gains of the best of {args.samples} over the policy's mean response to the same question, in standard "
        "deviations, with the 95% interval over questions:\n",
        "| picked by | correlation with judge | own reward | gold reward | beside the first | n with the most gold |",
        "|---" * 6 + "|",
        *table,
        f"\n![gold reward by KL]({os.path.relpath(args.figure, args.output.parent)})\n",
        f"The picked responses (n = {args.samples}) that each reward model overrates most:",
        *shown,
    ]
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
