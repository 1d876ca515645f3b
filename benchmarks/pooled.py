"""What to pool of a response: its content alone, with the end of its turn, or with all that the template adds.

    python benchmarks/pooled.py DATA_DIR WORK_DIR

Content is what the package pools. Before version 0.2 everything after the assistant header was pooled: with the
template of SmolLM2 the content, the end-of-turn token and a newline. The base model runs once over each text; all ways
of pooling read the same residual stream. Linear head, margin loss, 1,000 training pairs, 5 seeds; cross-validated
accuracy inside the training pairs, by which a way of pooling may be chosen, and accuracy on all of `test`. Writes
`results/pooled.md`.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from layers import FITTED, RESULTS, TASKS, load_pairs, machine, measure
from methods import Data, InMemory, Method, accuracy_cell, data_of, difference_cell, representation, selected, train
from safetensors.torch import load_file, save_file
from scipy import sparse
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from sparserm_hf.modeling.pooling_sparserm import pool_representations, pooled_tokens
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.base_models.loading import load_base_model
from sparserm_hf.base_models.packing import find_families, run_packed
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.encoding import TokenizedText
from sparserm_hf.representations.activations import encode_texts, mean_and_largest
from sparserm_hf.representations.shards import Representations
from sparserm_hf.runtime.batches import pad_texts, plan_batches
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE, load_sae
from sparserm_hf.sae.loading.presets import SHIPPED_SAE

SEEDS = range(5)
STOPS = {  # where the pooled tokens end
    "content": lambda text: text.stop,
    "content and end of turn": lambda text: min(text.stop + 1, len(text.ids)),
    "all that follows the header": lambda text: len(text.ids),
}


@torch.inference_mode()
def represent(model: PreTrainedModel, sae: LoadedSAE, texts: list[TokenizedText], path: Path) -> dict[str, InMemory]:
    """What is read of some texts, by where the pooled tokens end."""
    if not path.exists():
        families = find_families([text.ids for text in texts])
        kept: dict[str, torch.Tensor] = {}
        for batch in tqdm(plan_batches([family.length for family in families], 4096), desc=path.stem):
            members = [i for j in batch for i in families[j].members]
            hidden = run_packed(model, [text.ids for text in texts], [families[j] for j in batch])
            padded = pad_sequence(hidden, batch_first=True)
            _, mask = pad_texts([texts[i].ids for i in members], model.device)
            for name, stop in STOPS.items():
                places = [(texts[i].start, stop(texts[i])) for i in members]
                where, at_end = (pooled_tokens(mask, places, pooling) for pooling in ("response_mean", "last"))
                read = {
                    "mean": pool_representations(padded, where, "rms"),
                    "last": pool_representations(padded, at_end, "rms"),
                    "mean_activation": torch.stack(
                        [mean_and_largest(encoded)[0] for encoded in encode_texts(padded, where, sae.autoencoder)]
                    ),
                }
                for part, rows in read.items():
                    whole = kept.setdefault(f"{name}/{part}", torch.zeros(len(texts), rows.shape[1]))
                    whole[members] = rows
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    found = load_file(path)

    def shard(name: str) -> InMemory:
        mean, last, activation = (found[f"{name}/{part}"].numpy() for part in ("mean", "last", "mean_activation"))
        return InMemory(mean, last, sparse.csr_matrix(activation), sparse.csr_matrix(activation))

    return {name: shard(name) for name in STOPS}


def margins_of(method: Method, fitted: Data, test: Data) -> dict[str, list]:
    """Margins of the held-out training pairs and of the test pairs, for each seed."""
    runs = [train(method, fitted, seed) for seed in SEEDS]
    return {
        "held_out": [run.head.held_out_margins.tolist() for run in runs],
        "test": [run.margins(test).tolist() for run in runs],
    }


def main(data: Path, work: Path) -> None:
    sae = load_sae(str(SHIPPED_SAE))
    model = cut_base_model(load_base_model(unpacked(find_base_model())), sae.layer).eval()
    results: dict[tuple[str, str], dict[str, dict]] = {}
    for task in TASKS:
        splits = [load_pairs(data, task, split, rows) for split, rows in (("train", FITTED), ("test", "train"))]
        shards = [
            represent(model, sae, pairs.texts, work / "pooled" / f"{task}-{split}.safetensors")
            for pairs, split in zip(splits, ("train", "test"), strict=True)
        ]
        for stop in STOPS:
            fitted, test = (
                data_of(Representations([shard[stop]], np.arange(len(pairs.texts))), pairs)
                for shard, pairs in zip(shards, splits, strict=True)
            )
            for pooling in ("mean", "last"):
                methods = {
                    "SparseRM": selected(sae.autoencoder, (f"{pooling}_projection",)),
                    "dense": representation(pooling),
                }
                for name, method in methods.items():
                    compute = partial(margins_of, method, fitted, test)
                    path = work / "pooled" / f"{task}-{stop}-{pooling}-{name}.json"
                    results.setdefault((f"{name}, {pooling}", stop), {})[task] = measure(path, compute)
    write(results)


def write(results: dict[tuple[str, str], dict[str, dict]]) -> None:
    """Print the tables and write them."""
    text = (
        "Accuracy in % (95% interval, Wilson; mean of 5 seeds), then the difference to pooling the content alone on "
        "the same pairs (paired 95% interval). SmolLM2-135M-Instruct, the shipped SAE, linear head, margin loss, "
        f"1,000 training pairs. {machine()}. Made by `python benchmarks/pooled.py`.\n"
    )
    titles = {"held_out": "Cross-validated, inside the training pairs", "test": "On the test pairs"}
    for part, title in titles.items():
        text += f"\n{title}:\n\n| | pooled | {' | '.join(TASKS)} | {' | '.join(f'{t}, difference' for t in TASKS)} |\n"
        text += "|---" * (2 + 2 * len(TASKS)) + "|\n"
        for (name, stop), by_task in results.items():
            margins = {task: np.array(by_task[task][part]) for task in TASKS}
            reference = {task: np.array(results[name, "content"][task][part]) for task in TASKS}
            cells = [accuracy_cell(margins[task]) for task in TASKS]
            cells += ["" if stop == "content" else difference_cell(margins[task], reference[task]) for task in TASKS]
            text += f"| {name} | {stop} | {' | '.join(cells)} |\n"
    (RESULTS / "pooled.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
