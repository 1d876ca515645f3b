"""Labels on disk: two files of preference pairs, one to train on and one that is held out."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..align import read_rows, write_rows
from ..conversations import Messages
from ..runtime import SparseRMError

TRAINING_FILE = "labels.jsonl"
HELD_OUT_FILE = "held-out.jsonl"
EVERY = 5  # a fifth of the prompts is held out, and a fifth of the answers is about them

Row = dict[str, Any]


def is_held_out(prompt: Messages) -> bool:
    """Tell if a prompt is held out. This depends on its checksum only, so adding prompts changes nothing."""
    return zlib.crc32(repr([(message["role"], message["content"]) for message in prompt]).encode()) % EVERY == 0


def pair_key(row: Mapping[str, Any]) -> Hashable:
    """Make a key of a pair that does not depend on which response is chosen."""
    prompt = tuple((message["role"], message["content"]) for message in row["prompt"])
    return prompt, frozenset(row[side][-1]["content"] for side in ("chosen", "rejected"))


class LabelFiles:
    """The labels in a folder, in the order of the answers; every change is written to disk first.

    Args:
        folder: The folder; the first label creates it.

    Attributes:
        rows: Rows with `prompt`, `chosen` and `rejected` as messages, and `answer`, the number of the answer.

    Raises:
        SparseRMError: A file in the folder holds something else.
    """

    def __init__(self, folder: Path):
        self.paths = {False: folder / TRAINING_FILE, True: folder / HELD_OUT_FILE}  # True: rows of held-out prompts
        rows = [row for path in self.paths.values() for row in _read(path)]
        self.rows: list[Row] = sorted(rows, key=lambda row: row["answer"])

    @property
    def training(self) -> list[Row]:
        """The rows that are trained on."""
        return self._part(held_out=False)

    @property
    def held_out(self) -> list[Row]:
        """The rows that the reward model is measured on."""
        return self._part(held_out=True)

    def _part(self, held_out: bool) -> list[Row]:
        return [row for row in self.rows if is_held_out(row["prompt"]) == held_out]

    def add(self, prompt: Messages, chosen: Messages, rejected: Messages) -> None:
        """Write a label."""
        number = self.rows[-1]["answer"] + 1 if self.rows else 1
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "answer": number}
        self._write([*self.rows, row], is_held_out(prompt))

    def undo(self) -> Row:
        """Remove the last label, and return it."""
        last = self.rows[-1]
        self._write(self.rows[:-1], is_held_out(last["prompt"]))
        return last

    def _write(self, rows: Sequence[Row], held_out: bool) -> None:
        write_rows(self.paths[held_out], [row for row in rows if is_held_out(row["prompt"]) == held_out])
        self.rows = list(rows)


def _read(path: Path) -> list[Row]:
    try:
        rows = read_rows(path)
        for row in rows:
            pair_key(row)
        if all(isinstance(row["answer"], int) for row in rows):
            return rows
    except (KeyError, TypeError, IndexError, ValueError):
        pass
    raise SparseRMError(
        f"{path} holds something else than labels of `sparserm label`, whose rows have `prompt`, `chosen` and "
        "`rejected` as messages, and `answer`: name another folder, or mend the file."
    )
