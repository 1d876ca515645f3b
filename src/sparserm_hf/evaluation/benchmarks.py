"""RewardBench, RewardBench 2 and RM-Bench on a saved reward model, with its controls beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..conversations import ChatEncoder, Messages, TokenizedText, check_messages, row_name
from ..runtime import SparseRMError
from ..scoring import encoder_of
from .benchmark_scores import Prompt, Score, score_rewardbench, score_rewardbench2, score_rm_bench
from .represented_rewards import reward_with_controls
from .saved_models import SavedRewardModel


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark is and how it is scored.

    Attributes:
        title: Its name.
        dataset: Its dataset on the Hub.
        split: The split that holds it.
        subset_column: The column that names the subset.
        responses: How many chosen and how many rejected responses each prompt has; None where that differs.
        score: From prompts and the rewards of all texts to the report; its last line is the headline figure.
    """

    title: str
    dataset: str
    split: str
    subset_column: str
    responses: int | None
    score: Callable[[list[Prompt], np.ndarray], list[Score]]


BENCHMARKS = {
    "rewardbench": Benchmark("RewardBench", "allenai/reward-bench", "filtered", "subset", 1, score_rewardbench),
    "rewardbench2": Benchmark("RewardBench 2", "allenai/reward-bench-2", "test", "subset", None, score_rewardbench2),
    "rm-bench": Benchmark("RM-Bench", "THU-KEG/RM-Bench", "train", "domain", 3, score_rm_bench),
}


def _read_row(row: Mapping[str, Any], number: int, benchmark: Benchmark) -> tuple[Messages, list[str], list[str]]:
    """The prompt as messages, the chosen and the rejected responses of a row.

    Raises:
        SparseRMError: It is of another form.
    """
    columns = ("prompt", "chosen", "rejected", benchmark.subset_column)
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise SparseRMError(
            f"Row {number} has no `{missing[0]}`: {benchmark.title} has the columns {', '.join(columns)}."
        )
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = check_messages(messages, f"{row_name(number)}, `prompt`")
    sides = [row[name] if isinstance(row[name], list) else [row[name]] for name in ("chosen", "rejected")]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        wanted = benchmark.responses or max(len(side), 1)
        if len(side) != wanted or not all(isinstance(response, str) for response in side):
            raise SparseRMError(
                f"Row {number} has {len(side)} {name} responses, but {benchmark.title} has "
                f"{benchmark.responses or 'at least one'}, each a string."
            )
    return messages, *sides  # type: ignore[return-value]


def tokenize_benchmark(
    rows: Iterable[Mapping[str, Any]],
    benchmark: Benchmark,
    encoder: ChatEncoder,
) -> tuple[list[Prompt], list[TokenizedText]]:
    """The prompts of a benchmark, and the token ids of its distinct texts that they point at.

    Args:
        rows: Of the benchmark's dataset.
        benchmark: Which one.
        encoder: The reward model's.

    Raises:
        SparseRMError: A row is of another form, or there is none.
    """
    index: dict[TokenizedText, int] = {}
    prompts = []
    for number, row in enumerate(tqdm(rows, desc="Tokenising", unit="prompt", delay=2), 1):
        messages, *sides = _read_row(row, number, benchmark)
        numbers = []
        for side in sides:
            texts = [[*messages, {"role": "assistant", "content": response}] for response in side]
            ids = [encoder(text, row_name(number)) for text in texts]
            numbers.append([index.setdefault(x, len(index)) for x in ids])
        prompts.append(Prompt(str(row.get("id", number)), str(row[benchmark.subset_column]), *numbers))
    if not prompts:
        raise SparseRMError(f"There is no row of {benchmark.title}.")
    return prompts, list(index)


def run_benchmark(
    name: str,
    benchmark: Benchmark,
    rows: Iterable[Mapping[str, Any]],
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> dict[str, list[Score]]:
    """Report on a saved reward model, and on the controls that were saved beside it, by row name.

    Args:
        name: See `SavedRewardModel.load`.
        benchmark: One of `BENCHMARKS`.
        rows: Of its dataset, or some of them.
        max_length: Longer texts lose their start; by default as long as in training.
        dtype: See `SavedRewardModel.load`.
        revision: See `SavedRewardModel.load`.
        cache_dir: Where representations are kept.

    Raises:
        SparseRMError: The model cannot be loaded, or a row is of another form.
    """
    saved = SavedRewardModel.load(name, dtype, revision)
    prompts, texts = tokenize_benchmark(rows, benchmark, encoder_of(saved.model, saved.tokenizer, max_length))
    lengths = np.array([len(text.ids) for text in texts])
    rewards = reward_with_controls(
        saved.model, saved.controls, saved.represent(texts, cache_dir), lengths, saved.columns
    )
    return {row: benchmark.score(prompts, of_texts) for row, of_texts in rewards.items()}
