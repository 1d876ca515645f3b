"""What the recipe needs on disk: rows that can be learnt, an SAE, a command line."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import torch
from safetensors.torch import save_file
from tiny import tiny_causal_lm, tiny_sae, tiny_tokenizer

from sparserm_hf.evaluation.benchmark_scores import Prompt
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer

HOOK = "blocks.1.hook_resid_post"
# As accelerate starts them; on a free port, for another test may do the same.
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
TWO_PROCESSES += ["--standalone", "--local_addr", "127.0.0.1"]


def make_rows(count, seed=0):
    """Chosen responses use the words w0 to w29 more often, rejected ones w30 to w59."""
    rng = np.random.default_rng(seed)

    def words(low, high, n):
        return [f"w{i}" for i in rng.integers(low, high, n)]

    rows = []
    for _ in range(count):
        sides = (words(0, 30, 6) + words(30, 60, 2), words(30, 60, 6) + words(0, 30, 2))
        chosen, rejected = ([{"role": "assistant", "content": " ".join(rng.permutation(side))}] for side in sides)
        rows.append(
            {
                "prompt": [{"role": "user", "content": " ".join(words(0, 60, 5))}],
                "chosen": chosen,
                "rejected": rejected,
            }
        )
    return rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save_sae(folder, hook=HOOK, sae=None):
    sae = sae or tiny_sae("jumprelu")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(sae.state_dict(), folder / "sae_weights.safetensors")
    config = {"d_in": sae.d_in, "d_sae": sae.d_sae, "architecture": sae.architecture, "k": sae.k}
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": {"hook_name": hook}}))
    return str(folder)


def write_world(root):
    """A base model, an SAE and preference pairs on disk."""
    tiny_causal_lm().save_pretrained(root / "base")
    save_tokenizer(tiny_tokenizer(), root / "base")
    save_sae(root / "sae")
    write_jsonl(root / "train.jsonl", make_rows(120))
    write_jsonl(root / "test.jsonl", make_rows(60, seed=1))
    return root


def without_package(code, environment=None):
    """Run code in a process that cannot import this package."""
    code = f"import sys; sys.modules['sparserm_hf'] = None\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def train_arguments(world, out, **changes):
    arguments = {
        "model": world / "base",
        "sae": world / "sae",
        "dataset": world / "train.jsonl",
        "output_dir": out,
        "cache_dir": world / "cache",
        "k": 8,
        "check_sae": False,  # the SAE is a random one
        "dtype": "float32",  # on every CPU, and what transformers 4 loads in by itself
    } | changes
    return ["train", *options(arguments)]


def options(given):
    """Options of the command line; None leaves one out."""
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def random_prompts(subsets, sides, rng, levels=8):
    """Prompts of a benchmark, and rewards of few levels, with ties; `sides(i)` says how many responses."""
    prompts, rewards = [], []
    for i, subset in enumerate(subsets):
        numbers = []
        for count in sides(i):
            numbers.append(list(range(len(rewards), len(rewards) + count)))
            rewards += rng.integers(0, levels, count).tolist()
        prompts.append(Prompt(str(i), subset, *numbers))
    return prompts, np.array(rewards, dtype=float) / 3


def named(scores):
    """The lines of a benchmark's report by name."""
    return {score.name: score.value for score in scores}


@contextmanager
def one_thread():
    """Compute in one thread, as each of several processes does: the number decides the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def start_server(folder, *runner, **environment):
    """Start `sparserm serve` in a process of its own, by Python or by what runs it, and return it and its address."""
    command = [sys.executable, *runner, "-m", "sparserm_hf.cli", "serve", str(folder), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=os.environ | environment)
    return process, re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
