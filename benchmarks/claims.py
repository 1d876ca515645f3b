"""What explanations are worth: accuracy beside the share of claims that hold, by method and number of latents.

    python benchmarks/claims.py DATA_DIR [--model MODEL --sae SAE --numbers 16 128 --tasks ... --output NAME]

A claim is what `sparserm explain` prints: "this latent adds c to the reward". It holds if the reward loses c, to a
tenth, when the direction's part of the pooled tokens of the residual stream is set to its training average. Ten claims
a response, those with the largest |c|, on both responses of the first test pairs of each task.

Beside the package's own method (orthogonal directions of selected latents) stand the decoder directions as they are,
random directions, the principal components of the representation, and the features that left the package: mean and
largest SAE activations, alone and together with projections. A name is made of what a direction fires on, by
`sparserm_hf.naming`; a direction that is not a latent's fires on the tokens that it is largest on, as often as the
selected latents do on average. The dense representation has an accuracy alone. Writes `results/NAME.json` and
`results/NAME.md`, and for the default base model `../docs/claims.png`.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from layers import FITTED, RESULTS, TASKS, machine
from matplotlib.figure import Figure
from methods import difference_cell
from scipy import sparse
from sparserm_hf.modeling.backbone_sparserm import residual_stream
from sparserm_hf.modeling.pooling_sparserm import normalised_tokens, root_mean_square
from tqdm.auto import tqdm

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.encoding import TokenizedText
from sparserm_hf.conversations.token_texts import pooled_positions, pooled_token_texts
from sparserm_hf.evaluation.metrics import pair_metrics
from sparserm_hf.representations.shards import Representations
from sparserm_hf.sae.naming import name_latents
from sparserm_hf.training.directions import make_directions, random_directions
from sparserm_hf.training.folds import FOLDS, group_folds, pairs_outside
from sparserm_hf.training.objective import FittedHead
from sparserm_hf.training.represented_texts import PairIndices, RepresentedTexts
from sparserm_hf.training.selection import select_latents
from sparserm_hf.training.steps import fit_head, select

NUMBERS = (8, 16, 32, 64, 128, 256)  # of latents on either side
PAIRS = 25  # of test, whose claims are checked
CLAIMS = 10  # of each response
AGREEMENT = 0.1
NAMING_TEXTS = 600  # of training, whose tokens names are made of
DENSE = "dense representation"
LABEL = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
FIGURE = Path(__file__).parents[1] / "docs" / "claims.png"
OURS = "SparseRM, orthogonal directions"
RANDOM = "random directions, orthogonal"
METHODS = {  # by name: what the head reads, and the directions
    OURS: ("projection", "orthogonal"),
    "SparseRM, decoder directions (paper)": ("projection", "raw"),
    RANDOM: ("projection", "random"),
    "principal components": ("projection", "components"),
    "SAE activations, mean": ("mean_activation", "raw"),
    "SAE activations, mean and largest": ("mean_activation max_activation", "raw"),
    "projections and mean activations": ("projection mean_activation", "raw"),
}


@dataclass(frozen=True)
class Method:
    """What a head reads, of K directions.

    Attributes:
        reads: Some of `projection`, `mean_activation` and `max_activation`, separated by spaces.
        directions: (K, d_model) what is projected on.
        latents: (K,) ids of the latents; empty where the directions are not those of latents.
        purities: (K,) see `make_directions`.
    """

    reads: str
    directions: np.ndarray
    latents: np.ndarray
    purities: np.ndarray

    def features(self, texts: Representations) -> np.ndarray:
        """(N, F) features of texts; each reading has K of them."""
        parts = []
        for name in self.reads.split():
            if name == "projection":
                parts.append(texts.read(lambda shard: shard.mean.astype(np.float64) @ self.directions.T))
            else:
                parts.append(
                    texts.read(lambda shard, name=name: getattr(shard, name)[:, self.latents].toarray()).astype(float)
                )
        return np.concatenate(parts, axis=1)

    def features_of_tokens(self, trainer: SparseRMTrainer, hidden: torch.Tensor) -> np.ndarray:
        """(n, F) the same of n texts (n, T, d_model) of pooled tokens alone."""
        everywhere, parts = torch.ones(hidden.shape[:2], dtype=torch.bool), []
        for name in self.reads.split():
            if name == "projection":
                mean = normalised_tokens(hidden, everywhere, "rms").mean(1)
                parts.append(mean.double().numpy() @ self.directions.T)
            else:
                f = trainer.sae.autoencoder.encode(hidden)[..., self.latents]  # (n, T, K)
                parts.append((f.mean(1) if name == "mean_activation" else f.amax(1)).double().numpy())
        return np.concatenate(parts, axis=1)


def make_method(
    texts: RepresentedTexts, pairs: PairIndices, seed: int, name: str, k: int, train: np.ndarray
) -> Method:
    """A method of `METHODS` with K latents on either side, selected by some training pairs."""
    reads, kind = METHODS[name]
    d_model, average = len(texts.average), texts.average  # of all texts: no label is looked at
    if kind == "random":
        made = make_directions(random_directions(d_model, 2 * k, seed), "orthogonal", average)
        return Method(reads, made.rows, np.array([]), made.purities)
    if kind == "components":
        centred = texts.vectors - average
        return Method(reads, np.linalg.svd(centred, full_matrices=False)[2][: 2 * k], np.array([]), np.ones(2 * k))
    counts = texts.count_firing([pairs.chosen[train], pairs.rejected[train]])
    latents = select_latents(*counts, len(train), k).latents
    made = make_directions(texts.decoder[latents], kind, average)
    return Method(reads, made.rows, latents, made.purities)


@torch.no_grad()
def tokens_of(trainer: SparseRMTrainer, texts: list[TokenizedText]) -> list[torch.Tensor]:
    """The pooled tokens of each text, (T, d_model) of the residual stream."""
    kept = []
    for text in tqdm(texts, desc="Tokens", unit="text", delay=5):
        ids = torch.tensor([list(text.ids)])
        hidden = residual_stream(trainer.base_model, ids, torch.ones_like(ids))[0]
        kept.append(hidden[pooled_positions(text, "response_mean")].float())
    return kept


def count_claims(
    trainer: SparseRMTrainer,
    method: Method,
    head: FittedHead,
    of_training: np.ndarray,
    average: np.ndarray,
    tokens: list[torch.Tensor],
) -> tuple[int, int]:
    """Count the claims on some texts that hold, and those that were made.

    Args:
        trainer: Its SAE.
        method: Makes the features of the head.
        head: Fitted head.
        of_training: (F,) average features of the training texts.
        average: (d_model,) average normalised token of the training texts.
        tokens: Pooled tokens of the texts.
    """
    directions = torch.from_numpy(method.directions).float()
    unit = torch.nn.functional.normalize(directions, dim=1)
    at_average = unit.double() @ torch.from_numpy(average)  # (K,)
    weight = head.layers[0][0][0]
    holds = made = 0
    for hidden in tokens:
        if not len(hidden):
            continue
        features = method.features_of_tokens(trainer, hidden[None])
        added = (weight * (features[0] - of_training)).reshape(-1, len(directions)).sum(0)  # (K,)
        tried = np.argsort(-np.abs(added), kind="stable")[:CLAIMS]
        change = at_average[tried].float()[:, None] * root_mean_square(hidden) - unit[tried] @ hidden.T  # (n, T)
        changed = hidden + change[..., None] * unit[tried][:, None]  # (n, T, d_model)
        lost = head.rewards(features) - head.rewards(method.features_of_tokens(trainer, changed))
        holds += int((np.abs(lost - added[tried]) <= AGREEMENT * np.abs(added[tried])).sum())
        made += len(tried)
    return holds, made


def score_names(trainer: SparseRMTrainer, method: Method, tokens: list[torch.Tensor], share: float | None) -> dict:
    """How well names made of half of the naming texts predict firing on the others, and how often it fires.

    Args:
        trainer: Its SAE.
        method: Its directions or latents are named.
        tokens: Pooled tokens of the first training texts.
        share: How often a direction fires; None where latents do.
    """
    every = torch.cat(tokens)
    if share is None:
        fires = (trainer.sae.autoencoder.encode(every)[:, method.latents] > 0).numpy()
    else:
        z = (every / root_mean_square(every)[:, None]).numpy() @ method.directions.T
        fires = z > np.quantile(z, 1 - share, axis=0)
    pieces = [pooled_token_texts(trainer.processing_class, text, "response_mean") for text in naming_texts(trainer)]
    names = name_latents(pieces, sparse.csr_matrix(fires), naming_groups(trainer))
    scores = [name.f1 if name else 0.0 for name in names]
    return {"name_f1": float(np.mean(scores)), "fires": float(fires.mean())}


def naming_texts(trainer: SparseRMTrainer) -> list[TokenizedText]:
    """The first training texts that have a token."""
    return [text for text in trainer.train_pairs.texts[:NAMING_TEXTS] if text.response]


def naming_groups(trainer: SparseRMTrainer) -> list[int]:
    """The prompt that each of them belongs to, as a number."""
    pairs = trainer.train_pairs
    group = dict(zip([*pairs.chosen, *pairs.rejected], [*pairs.groups, *pairs.groups], strict=True))
    return [group[i] for i, text in enumerate(pairs.texts[:NAMING_TEXTS]) if text.response]


def measure_task(args: argparse.Namespace, task: str, folder: str) -> list[dict]:
    """All methods and numbers of latents on a task, a row each."""
    trainer = SparseRMTrainer(
        args.model or find_base_model(),
        args.sae,
        SparseRMTrainingConfig(f"{folder}/{task}"),
        load_preferences(str(args.data / task / "train.jsonl.gz"), FITTED),
        load_preferences(str(args.data / task / "test.jsonl.gz")),
    )
    pairs, training = trainer.eval_pairs, PairIndices.of(trainer.train_pairs)
    cached, test = trainer.represent(trainer.train_pairs.texts), trainer.represent(pairs.texts)
    texts = RepresentedTexts.of(cached, trainer.sae.autoencoder.W_dec.double().numpy())
    fold_of, k_chosen = group_folds(training.groups, FOLDS, trainer.args.seed), select(texts, training, trainer.args).k
    checked = [pairs.texts[side[i]] for i in range(PAIRS) for side in (pairs.chosen, pairs.rejected)]
    tokens, naming = tokens_of(trainer, checked), tokens_of(trainer, naming_texts(trainer))
    dense = fit_head(texts.vectors.astype(np.float64), training, trainer.args)
    rewards = dense.rewards(test.read(lambda shard: shard.mean.astype(np.float64)))
    accuracy = asdict(pair_metrics(rewards[pairs.chosen] - rewards[pairs.rejected]))
    rows: list[dict] = [{"task": task, "method": DENSE, "accuracy": accuracy}]
    for k in tqdm(args.numbers, desc=task, unit="K"):
        share, of_k = None, {}
        for name in METHODS:
            make = partial(make_method, texts, training, trainer.args.seed, name, k)
            method = make(pairs_outside(fold_of, None))
            features = method.features(cached)

            def features_without(fold: int, make: Callable[[np.ndarray], Method] = make) -> np.ndarray:
                return make(pairs_outside(fold_of, fold)).features(cached)

            head = fit_head(features, training, trainer.args, features_without)
            rewards = head.rewards(method.features(test))
            margins = of_k[name] = rewards[pairs.chosen] - rewards[pairs.rejected]
            holds, made = count_claims(trainer, method, head, features.mean(0), texts.average, tokens)
            row = {"task": task, "k": k, "method": name, "validation_accuracy": head.validation_accuracy}
            row |= {"accuracy": asdict(pair_metrics(margins)), "claims": made, "hold": holds}
            row |= {"purity": float(method.purities.mean()), "least_purity": float(method.purities.min())}
            if method.reads == "projection":
                of_latents = len(method.latents) > 0
                row |= score_names(trainer, method, naming, None if of_latents else share)
                share = row["fires"] if of_latents else share
            rows.append(row | {"chosen": k == k_chosen and name == OURS})
        for row in rows[-len(METHODS) :]:
            if row["method"] != RANDOM:
                row["minus_random"] = difference_cell(of_k[row["method"]], of_k[RANDOM])
    return rows


def draw(rows: list[dict]) -> Figure:
    """Accuracy against claims that hold: a panel a task, a line a method, a dot a number of latents."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, len(TASKS))
    for axes, task in zip(panels, TASKS, strict=True):
        axes.axvspan(97, 101, color="#1f9d57", alpha=0.08)
        for i, name in enumerate(METHODS):
            of = [row for row in rows if row["task"] == task and row["method"] == name]
            x, y = ([100 * at(row) for row in of] for at in (share_of_claims, lambda row: row["accuracy"]["accuracy"]))
            strong = name == OURS
            axes.plot(x, y, color=f"C{i}", alpha=0.9 if strong else 0.5, linewidth=1.6 if strong else 0.8, label=name)
            axes.scatter(x, y, s=[6 + 5 * np.log2(row["k"]) for row in of], color=f"C{i}", zorder=3)
            for row, here in zip(of, zip(x, y, strict=True), strict=True):
                if row["chosen"]:
                    axes.annotate(
                        f"auto: K = {row['k']}", here, (-14, -3), textcoords="offset points", ha="right", bbox=LABEL
                    )
        axes.set(title=task, xlabel="claims that hold, in %", xlim=(-3, 101))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy on test, in %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def share_of_claims(row: dict) -> float:
    """The share of a row's claims that hold."""
    return row["hold"] / row["claims"]


def cells_of(row: dict) -> list[str]:
    """The cells of a row of the table."""
    metrics = row["accuracy"]
    accuracy = " ".join(f"{100 * metrics[x]:.1f}" for x in ("accuracy", "low", "high")).split()
    cell = f"{accuracy[0]} ({accuracy[1]} to {accuracy[2]})"
    if row["method"] == DENSE:
        return ["", DENSE, cell, "", "", "", ""]
    return [
        f"{row['k']}{'*' if row['chosen'] else ''}",
        row["method"],
        cell,
        row.get("minus_random", ""),
        f"{100 * share_of_claims(row):.1f}",
        f"{row['purity']:.3f} ({row['least_purity']:.3f})",
        f"{row['name_f1']:.2f}" if "name_f1" in row else "",
    ]


def write(rows: list[dict], args: argparse.Namespace) -> None:
    """Print the tables and write them, with the figure."""
    base = Path(args.model).stem if args.model else "SmolLM2-135M-Instruct, layer 18"
    lines = [
        f"Made by `python benchmarks/claims.py DATA_DIR` on {machine()}. {base}, the first "
        "1,000 pairs; accuracy on all of `test` (95% interval, Wilson), and minus that of random directions (paired "
        "95% interval). Claims: the share that holds to a tenth, of "
        f"those on {PAIRS} test pairs, {CLAIMS} a response. Purity: mean cosine with the SAE's own direction (least). "
        "Name: mean F1 of the names on held-out responses. *: the number of latents that `--k auto` chooses.\n"
    ]
    for task in args.tasks:
        lines += [f"## {task}\n", "| K a side | method | accuracy % | minus random | claims % | purity | name |"]
        lines += ["|---" * 7 + "|"]
        lines += [f"| {' | '.join(cells_of(row))} |" for row in rows if row["task"] == task]
        lines.append("")
    text = "\n".join(lines)
    (RESULTS / f"{args.output}.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    (RESULTS / f"{args.output}.md").write_text(text)
    if not args.model:
        draw([row for row in rows if row["method"] != DENSE]).savefig(FIGURE, dpi=110, facecolor="white")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="another base model than SmolLM2-135M-Instruct")
    parser.add_argument("--sae", help="its SAE")
    parser.add_argument("--numbers", nargs="+", type=int, default=NUMBERS)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--output", default="claims")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        write([row for task in args.tasks for row in measure_task(args, task, folder)], args)


if __name__ == "__main__":
    main()
