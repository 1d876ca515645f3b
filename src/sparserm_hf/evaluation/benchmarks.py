"""Run RewardBench, RewardBench 2 and RM-Bench on a saved reward model, beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..conversations import ChatEncoder, Messages, TokenizedText, check_messages, load_preferences, row_name
from ..runtime import SparseRMError, shown
from .benchmark_scores import Prompt, Score, score_rewardbench, score_rewardbench2, score_rm_bench
from .represented_rewards import reward_with_controls
from .saved_models import SavedRewardModel


@dataclass(frozen=True)
class Benchmark:
    """The dataset and the scoring of a benchmark.

    Attributes:
        title: Name of the benchmark.
        dataset: Hub id of its dataset.
        split: Split of the dataset.
        subset_column: Column with the name of a prompt's subset.
        responses: Number of chosen and of rejected responses of each prompt; None if the numbers differ.
        score: Maps prompts and the rewards of all texts to scores; the last score is the headline figure.
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


@dataclass(frozen=True)
class BenchmarkRow:
    """A prompt of a benchmark with its responses.

    Attributes:
        prompt: The prompt as messages.
        chosen: Right responses.
        rejected: Wrong responses.
    """

    prompt: Messages
    chosen: list[str]
    rejected: list[str]


def read_row(row: Mapping[str, Any], number: int, benchmark: Benchmark) -> BenchmarkRow:
    """Read a row of a benchmark's dataset.

    Args:
        row: The row.
        number: Number of the row, from 1, for errors.
        benchmark: The benchmark.

    Raises:
        SparseRMError: A column is missing, or a response is not usable.

    Example:
        >>> row = {"prompt": "2 + 2?", "chosen": "4.", "rejected": "5.", "subset": "math"}
        >>> read_row(row, 1, BENCHMARKS["rewardbench"]).rejected
        ['5.']
    """
    columns = ("prompt", "chosen", "rejected", benchmark.subset_column)
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise SparseRMError(
            f"Row {number} has no `{missing[0]}`: {benchmark.title} needs the columns {', '.join(columns)}."
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
    return BenchmarkRow(messages, *sides)


def tokenize_benchmark(
    rows: Iterable[Mapping[str, Any]],
    benchmark: Benchmark,
    encoder: ChatEncoder,
) -> tuple[list[Prompt], list[TokenizedText]]:
    """Tokenise the distinct texts of a benchmark.

    Args:
        rows: Rows of the benchmark's dataset.
        benchmark: The benchmark.
        encoder: Encoder of the reward model.

    Returns:
        The prompts, and the texts that the prompts refer to by index.

    Raises:
        SparseRMError: A row is malformed, or there is no row.
    """
    index: dict[TokenizedText, int] = {}
    prompts = []
    for number, row in enumerate(tqdm(rows, desc="Tokenising", unit="prompt", delay=2), 1):
        found = read_row(row, number, benchmark)
        numbers = []
        for side in (found.chosen, found.rejected):
            texts = [[*found.prompt, {"role": "assistant", "content": response}] for response in side]
            ids = [encoder(text, row_name(number)) for text in texts]
            numbers.append([index.setdefault(x, len(index)) for x in ids])
        prompts.append(Prompt(str(row.get("id", number)), str(row[benchmark.subset_column]), *numbers))
    if not prompts:
        raise SparseRMError(f"There are no rows: give rows of {benchmark.title}.")
    return prompts, list(index)


def run_benchmark(
    model: str,
    benchmark: str,
    rows: Iterable[Mapping[str, Any]] | None = None,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> dict[str, list[Score]]:
    """Score a saved reward model on a benchmark, beside the controls that were saved with it.

    Args:
        model: Folder or Hub id of the reward model.
        benchmark: One of `BENCHMARKS`.
        rows: Rows of the benchmark's dataset; by default all of them, from the Hub.
        max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        dtype: Data type of the base model; `auto` takes the type that training ran in.
        revision: Revision of the reward model on the Hub.
        cache_dir: Folder of cached representations; by default in `HF_HOME`.

    Returns:
        The benchmark's scores by row name, see `RowName`; the last score of a row is the headline figure.

    Raises:
        SparseRMError: The model cannot be loaded, the benchmark is unknown, or a row is malformed.

    Example:
        ```python
        from sparserm_hf import run_benchmark

        rows = [{"subset": "Math", "prompt": "2 + 2?", "chosen": ["4."], "rejected": ["3.", "5.", "6."]}]
        scores = run_benchmark("my-reward-model", "rewardbench2", rows)  # without rows: all of RewardBench 2
        print(scores["SparseRM"][-1])
        ```
    """
    if benchmark not in BENCHMARKS:
        raise SparseRMError(f"There is no benchmark {shown(benchmark)}: choose from {', '.join(BENCHMARKS)}.")
    chosen = BENCHMARKS[benchmark]
    rows = load_preferences(chosen.dataset, chosen.split) if rows is None else rows
    saved = SavedRewardModel.load(model, dtype, revision)
    prompts, texts = tokenize_benchmark(rows, chosen, saved.encoder(max_length))
    lengths = np.array([len(text.ids) for text in texts])
    represented = saved.represent(texts, cache_dir)
    rewards = reward_with_controls(saved.model, saved.controls, represented, lengths, saved.columns)
    return {row: chosen.score(prompts, of_texts) for row, of_texts in rewards.items()}
