"""The documents' examples, and a folder that has everything which they name, so that they run as they are written."""

import re
import shutil
from pathlib import Path

from tiny import tiny_causal_lm, tiny_tokenizer
from world import make_rows, save_sae, train_arguments, write_jsonl

from sparserm_hf.cli import main
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer

BASE_MODELS = ("my-base-model", "my-policy", "google/gemma-2-2b-it", "HuggingFaceTB/SmolLM2-135M-Instruct")
SAES = ("my-sae", "gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical")
REWARD_MODELS = ("my-reward-model", "another-reward-model", "demo-output/model")
PAIRS = ("my-pairs", "my-test-pairs", "demo-output/train", "demo-output/test", "helpful", "safe")
ROWS = ("answers", "policy-responses", "my-texts")


def snippet(page, word):
    """The first example of a page of the manual that has a word."""
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    return next(code for code in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL) if word in code)


def write_documented(root):
    """Write base models, SAEs, preference pairs, rows and trained reward models under the documents' names."""
    for name in BASE_MODELS:
        tiny_causal_lm().save_pretrained(root / name)
        save_tokenizer(tiny_tokenizer(), root / name)
    for name in SAES:
        save_sae(root / name)
    (root / "demo-output").mkdir()
    for seed, name in enumerate(PAIRS):
        write_jsonl(root / f"{name}.jsonl", make_rows(40 if "test" in name else 120, seed))
    for seed, name in enumerate(ROWS):
        rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in make_rows(40, seed + 10)]
        write_jsonl(root / f"{name}.jsonl", rows)
    (root / "my-labels").mkdir()
    write_jsonl(root / "my-labels" / "labels.jsonl", make_rows(40, seed=30))
    write_jsonl(root / "my-labels" / "held-out.jsonl", make_rows(10, seed=31))
    prompts = [{"prompt": row["prompt"]} for row in make_rows(8, seed=20)]
    write_jsonl(root / "questions.jsonl", prompts)
    names = {"base": root / "my-base-model", "sae": root / "my-sae", "train.jsonl": root / "my-pairs.jsonl"}
    first = root / REWARD_MODELS[0]
    arguments = {"model": names["base"], "sae": names["sae"], "dataset": names["train.jsonl"]}
    assert main(train_arguments(root, first, eval_dataset=root / "my-test-pairs.jsonl", **arguments)) == 0
    for name in REWARD_MODELS[1:]:
        shutil.copytree(first, root / name)
    last_token = {"pooling": "last", "head_type": "linear", "representation_norm": "rms"}
    assert main(train_arguments(root, root / "my-last-token-model", **arguments, **last_token)) == 0
    return root
