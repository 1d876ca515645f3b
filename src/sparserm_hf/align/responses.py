"""Pairs of responses: written by the policy, then scored and filtered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..conversations import Messages
from ..runtime import memory_advice
from .policy import Policy
from .questions import Contrast
from .round_files import read_rows, write_rows
from .settings import AlignmentConfig

Row = dict[str, Any]
Judge = Callable[[Sequence[Messages]], np.ndarray]  # conversations to (N,) rewards

KEPT = "kept"
IDENTICAL, EMPTY, DISAGREES, TOO_CLOSE, DRAWN = (
    "identical responses",
    "an empty response",
    "the reward model sees it the other way round",
    "rewards closer than min_margin",
    "left out at random",
)


def write_responses(
    policy: Policy, questions: Sequence[Messages], config: AlignmentConfig, seed: int, path: Path
) -> list[Row]:
    """Have the policy answer questions, for `contrast` in two ways, for `best-of-n` several times.

    A run that was interrupted continues from its file.

    Args:
        policy: The policy.
        questions: The questions of the round.
        config: The settings.
        seed: Seed from which each batch gets its own, so that an interrupted run writes the same responses.
        path: File to write. Each row has the `prompt` and its `responses`, each with `text`, `tokens` and `cut`.

    Returns:
        The rows of the file.
    """
    if path.is_file():
        return read_rows(path)
    contrast = Contrast.load(config.task) if config.pairs == "contrast" else None
    each = 2 if contrast else config.num_samples
    size = max(config.generation_batch_size // each, 1)  # number of questions in a batch
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(part)
    rows = rows[: len(rows) // size * size]  # whole batches
    with tqdm(total=len(questions), initial=len(rows), desc="Writing", unit="question", delay=2) as bar:
        for start in range(len(rows), len(questions), size):
            asked = questions[start : start + size]
            prompts = [
                way for question in asked for way in (contrast.ask(question) if contrast else [question] * each)
            ]
            with memory_advice("writing responses", "lower generation_batch_size"):
                written = policy.write(prompts, config.max_new_tokens, config.temperature, seed + start)
            for number, question in enumerate(asked):
                responses = [asdict(response) for response in written[number * each : (number + 1) * each]]
                rows.append({"prompt": question, "responses": responses})
            write_rows(part, rows)
            bar.update(len(asked))
    write_rows(path, rows)
    part.unlink(missing_ok=True)
    return rows


def conversations(rows: Sequence[Row]) -> list[Messages]:
    """Return each response of each row with its prompt, as messages."""
    return [
        [*row["prompt"], {"role": "assistant", "content": response["text"]}]
        for row in rows
        for response in row["responses"]
    ]


def filter_pairs(rows: Sequence[Row], rewards: np.ndarray | None, config: AlignmentConfig, seed: int) -> list[Row]:
    """Make a pair of the responses of each row, and decide if it is kept.

    For `contrast` the first response is chosen, whatever its reward. For `best-of-n` the response with the highest
    reward is chosen, and the response with the lowest reward is rejected.

    Args:
        rows: N rows from `write_responses`, each with n responses.
        rewards: (N, n) rewards of the responses; None for no filter, where `best-of-n` draws two responses.
        config: The settings.
        seed: Seed for drawing responses.

    Returns:
        Rows with `prompt`, `chosen` and `rejected` as messages, their rewards, `kept` and `reason`.
    """
    draw = np.random.default_rng(seed)
    pairs = []
    for number, row in enumerate(rows):
        chosen, rejected = 0, 1
        if config.pairs == "best-of-n" and rewards is None:
            chosen, rejected = draw.choice(len(row["responses"]), 2, replace=False)
        elif config.pairs == "best-of-n" and rewards is not None:
            chosen, rejected = int(rewards[number].argmax()), int(rewards[number].argmin())
        texts = [row["responses"][i]["text"] for i in (chosen, rejected)]
        found = [float(rewards[number][i]) for i in (chosen, rejected)] if rewards is not None else [None, None]
        reason = KEPT
        if texts[0] == texts[1]:
            reason = IDENTICAL
        elif not all(texts):
            reason = EMPTY
        elif found[0] is not None and found[1] is not None:
            if found[0] < found[1]:
                reason = DISAGREES
            elif found[0] - found[1] < config.min_margin:
                reason = TOO_CLOSE
        pairs.append(
            {
                "prompt": row["prompt"],
                "chosen": [{"role": "assistant", "content": texts[0]}],
                "rejected": [{"role": "assistant", "content": texts[1]}],
                "chosen_reward": found[0],
                "rejected_reward": found[1],
                "kept": reason == KEPT,
                "reason": reason,
            }
        )
    return pairs


def keep_as_many(pairs: list[Row], count: int, seed: int) -> list[Row]:
    """Keep only `count` of the kept pairs, drawn at random."""
    kept = [number for number, pair in enumerate(pairs) if pair["kept"]]
    drawn = set(np.random.default_rng(seed).choice(kept, min(count, len(kept)), replace=False).tolist())
    dropped = {"kept": False, "reason": DRAWN}
    return [pair | dropped if i in set(kept) - drawn else pair for i, pair in enumerate(pairs)]


def reasons(pairs: Sequence[Row]) -> dict[str, int]:
    """Count the pairs that are kept, and the dropped pairs by reason."""
    return dict(Counter(pair["reason"] for pair in pairs).most_common())
