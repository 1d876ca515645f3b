"""How time and memory grow with the number of pairs, the width of the SAE, the length of texts and the processes.

    python benchmarks/growth.py DATA_DIR [--stages extraction pairs width length processes]

Each row is measured in a process of its own, so that its peak memory is its own; importing everything takes 0.6 GB of
it. `extraction` runs a tiny random model over random texts. `pairs` and `width` simulate the cache: a few shards as
extraction leaves them, listed again and again, then selection and the cross-validated fit of `sparserm train` with
`--k 128`. Writes `results/growth.json` and `results/growth.md`; a stage that is left out keeps what was measured
before.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from layers import FITTED, RESULTS, load_pairs, machine
from safetensors.torch import save_file
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig

from sparserm_hf import PairIndices, RepresentedTexts, RewardHeadConfig, fit_reward_head
from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.base_models.loading import load_base_model
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.encoding import TokenizedText
from sparserm_hf.representations.collect import collect_representations
from sparserm_hf.representations.representer import Pooling
from sparserm_hf.representations.shard_files import StoredShard
from sparserm_hf.representations.shards import Representations
from sparserm_hf.runtime.devices import preferred_dtype

D_MODEL, D_SAE = 576, 4608  # of SmolLM2-135M and the shipped SAE
FIRING = 700  # latents that fire on a text: 320, 720 and 1,140 on the three tasks
SHARDS, SHARD_TEXTS = 20, 200
TOKENS = 8192  # of a pass in `length`
STAGES: dict[str, list[tuple]] = {
    "extraction": [(texts,) for texts in (1_000, 10_000, 100_000)],
    "pairs": [(pairs, D_SAE) for pairs in (1_000, 10_000, 100_000, 1_000_000)],
    "width": [(10_000, d_sae) for d_sae in (16_384, 65_536, 131_072)],
    "length": [(length,) for length in (64, 128, 256, 512, 1024, 2048)],
    "processes": [(1,), (2,)],
}


def extraction(texts: int) -> dict[str, float]:
    """A tiny random model over texts of 100 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=500
    )
    base = cut_base_model(AutoModelForCausalLM.from_config(config).eval(), 1)
    sae = SparseAutoencoder(64, 256)
    sae.W_enc, sae.W_dec = torch.randn(64, 256), torch.randn(256, 64)
    ids = torch.randint(3, 250, (texts, 100)).tolist()  # numbers that Python keeps one copy of
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        how = Pooling("mean", "rms")
        texts_of = [TokenizedText(tuple(text), 0, 0, len(text)) for text in ids]
        collect_representations(base, sae, texts_of, how, Path(cache))
        return {"texts": texts, "seconds": time.perf_counter() - started}


def synthetic_cache(folder: Path, texts: int, d_sae: int) -> Representations:
    """Shards of random texts as extraction leaves them, but for the activations of single tokens.

    They are a few files, listed as often as it takes.
    """
    generator = torch.Generator().manual_seed(0)
    paths = []
    for i in range(SHARDS):
        columns = [torch.randperm(d_sae, generator=generator)[:FIRING].sort()[0].int() for _ in range(SHARD_TEXTS)]
        tensors = {
            "mean": torch.randn(SHARD_TEXTS, D_MODEL, generator=generator),
            "pooled_values": torch.rand(SHARD_TEXTS * FIRING, generator=generator),
            "pooled_columns": torch.cat(columns),
            "pooled_starts": torch.arange(SHARD_TEXTS + 1) * FIRING,
        }
        paths.append(folder / f"{i}.safetensors")
        save_file(tensors, paths[-1])
    needed = texts // SHARD_TEXTS
    return Representations([StoredShard(paths[i % SHARDS], d_sae) for i in range(needed)], np.arange(texts))


def pairs(count: int, d_sae: int) -> dict[str, float]:
    """Selection, features and the cross-validated fit of the linear head to pairs of synthetic texts."""
    with tempfile.TemporaryDirectory() as folder:
        texts = synthetic_cache(Path(folder), 2 * count, d_sae)
        decoder = torch.randn(d_sae, D_MODEL).double().numpy()
        chosen, rejected = range(0, 2 * count, 2), range(1, 2 * count, 2)
        started = time.perf_counter()
        texts.count_firing(np.array(chosen), np.array(rejected))
        once = time.perf_counter() - started
        numbered = PairIndices(np.array(chosen), np.array(rejected), np.arange(count))
        started = time.perf_counter()
        config = RewardHeadConfig(k=128, loss="bradley_terry")
        fit_reward_head(RepresentedTexts.of(texts, decoder), numbered, config)
        fit = time.perf_counter() - started
        return {"pairs": count, "d_sae": d_sae, "seconds of one selection": once, "seconds of the fit": fit}


@torch.inference_mode()
def length(tokens: int) -> dict[str, float]:
    """The cut base model on rows of one length."""
    base = cut_base_model(load_base_model(unpacked(find_base_model()), None), 18)
    base = base.to(preferred_dtype(torch.device("cpu"))).eval()
    ids = torch.randint(3, 1000, (max(1, TOKENS // tokens), tokens))
    base(ids[:1])
    started = time.perf_counter()
    for row in ids.split(max(1, 4096 // tokens)):
        base(row, use_cache=False)
    return {"length": tokens, "tokens a second": ids.numel() / (time.perf_counter() - started)}


def processes(data: Path, count: int) -> dict[str, float]:
    """`sparserm train` from cold in several processes of one thread each."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
        command += ["-m", "sparserm_hf.cli", "train", "--model", find_base_model(), "--no_controls"]
        command += ["--dataset", str(data / "truthfulness" / "train.jsonl.gz"), "--dataset_split", FITTED]
        command += ["--output_dir", f"{work}/out", "--cache_dir", f"{work}/cache"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        words = " ".join(run.stdout.split())
        seconds = float(words.partition(" s for representations")[0].rpartition(" ")[2])
        tokens = int(load_pairs(data, "truthfulness", "train", FITTED).lengths.sum())
        return {"processes": count, "seconds of extraction": seconds, "tokens a second": tokens / seconds}


def in_a_process_of_its_own(data: Path, stage: str, arguments: tuple) -> dict[str, float]:
    command = [sys.executable, __file__, str(data), "--measure", stage, *map(str, arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def measure(data: Path, stage: str, arguments: list[int]) -> dict[str, float]:
    if stage == "processes":
        return processes(data, *arguments)
    found = {"extraction": extraction, "pairs": pairs, "width": pairs, "length": length}[stage](*arguments)
    return found | {"peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = [f"{machine()}. Made by `python benchmarks/growth.py`.\n"]
    for stage, rows in results.items():
        lines += [f"\n## {stage.capitalize()}\n", f"| {' | '.join(rows[0])} |", "|---:" * len(rows[0]) + "|"]
        for row in rows:
            cells = (f"{v:,}" if isinstance(v, int) else f"{v:,.{0 if v >= 100 else 2}f}" for v in row.values())
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        stage, *arguments = args.measure
        print(json.dumps(measure(args.data, stage, [int(argument) for argument in arguments])))
        return
    path = RESULTS / "growth.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for stage in args.stages:
        rows = tqdm(STAGES[stage], desc=stage)
        results[stage] = [in_a_process_of_its_own(args.data, stage, arguments) for arguments in rows]
        path.write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    (RESULTS / "growth.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
