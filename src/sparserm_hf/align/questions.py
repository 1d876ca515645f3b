"""Questions for the policy: read from rows, split into held-out questions and rounds, and asked in two ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..conversations import Messages, check_messages, check_text, list_names, row_name
from ..runtime import SparseRMError
from .settings import AlignmentConfig

TASKS = resources.files(__package__) / "tasks"
QUESTION = "{question}"


def read_questions(rows: Iterable[Mapping[str, Any]]) -> list[Messages]:
    """Collect the distinct questions of rows, each as messages that end with the user's.

    Args:
        rows: Rows with a `prompt` or a `question`, each a string or messages; preference pairs with a `prompt`
            work too.

    Raises:
        SparseRMError: A row has no question, its last message is not the user's, or there are no rows.
    """
    found: dict[str, Messages] = {}
    for number, row in enumerate(rows, 1):
        asked = next((row[name] for name in ("prompt", "question") if row.get(name)), None)
        if asked is None:
            raise SparseRMError(
                f"Row {number} has the columns {list_names(row)}; it needs a `prompt` or a `question`."
            )
        where = f"{row_name(number)}, the question,"
        if isinstance(asked, str):
            asked = [{"role": "user", "content": check_text(asked, where)}]
        messages = check_messages(asked, where)
        if messages[-1]["role"] != "user":
            raise SparseRMError(
                f"The prompt of row {number} ends with a message of the {messages[-1]['role']}, but must end with the "
                "user's."
            )
        found.setdefault(repr(messages), [{key: m[key] for key in ("role", "content")} for m in messages])
    if not found:
        raise SparseRMError("There are no questions: give rows with a `prompt` or a `question`.")
    return list(found.values())


@dataclass(frozen=True)
class Questions:
    """The questions of a run.

    Attributes:
        held_out: Questions that are never trained on.
        rounds: Questions of each round.
    """

    held_out: list[Messages]
    rounds: list[list[Messages]]

    @classmethod
    def split(cls, questions: list[Messages], config: AlignmentConfig) -> Questions:
        """Shuffle questions by the seed, hold some out, and deal the others to the rounds.

        If there are too few questions, some are asked in several rounds.

        Raises:
            SparseRMError: No question would be left to train on.
        """
        if len(questions) <= config.held_out_questions:
            raise SparseRMError(
                f"There are {len(questions)} distinct questions, of which held_out_questions holds out "
                f"{config.held_out_questions}, so none is left to train on: lower it, or give more questions."
            )
        order = np.random.default_rng(config.seed).permutation(len(questions))
        held_out, rest = np.split(order, [config.held_out_questions])
        count = min(config.questions_per_round, len(rest))
        rounds = [
            [questions[rest[i % len(rest)]] for i in range(number * count, (number + 1) * count)]
            for number in range(config.num_rounds)
        ]
        return cls([questions[i] for i in held_out], rounds)


@dataclass(frozen=True)
class Contrast:
    """Prompts for the preferred behaviour and for its opposite; `{question}` stands for the user's message."""

    preferred: str
    opposite: str

    @classmethod
    def load(cls, task: str) -> Contrast:
        """Load a task of the package by its name, or a task from a YAML file.

        Raises:
            SparseRMError: There is no such task, or the file is malformed.
        """
        path = Path(task)
        known = sorted(file.name.removesuffix(".yaml") for file in TASKS.iterdir())
        if not path.is_file() and task not in known:
            raise SparseRMError(f"The task {task!r} is neither a YAML file nor one of {', '.join(known)}.")
        text = path.read_text("utf-8") if path.is_file() else (TASKS / f"{task}.yaml").read_text("utf-8")
        try:
            asked = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SparseRMError(f"{task} cannot be read as YAML: {' '.join(str(error).split())}.") from None
        ways = [asked.get(name) if isinstance(asked, dict) else None for name in ("preferred", "opposite")]
        if not all(isinstance(way, str) and QUESTION in way for way in ways):
            raise SparseRMError(f"{task} must hold `preferred` and `opposite`, each a text with {QUESTION} in it.")
        return cls(*map(str, ways))

    def ask(self, question: Messages) -> tuple[Messages, Messages]:
        """Put a question into both prompts; return the preferred prompt first."""
        *before, last = question
        return tuple(
            [*before, {"role": "user", "content": way.replace(QUESTION, last["content"])}]
            for way in (self.preferred, self.opposite)
        )  # type: ignore[return-value]
