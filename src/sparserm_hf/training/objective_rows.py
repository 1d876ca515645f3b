"""Preference pairs of several objectives: rows with a column `objective`, or a dataset for each objective."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict

from ..conversations import (
    ChatEncoder,
    TokenizedPreferences,
    list_names,
    load_preferences,
    row_name,
    tokenize_preferences,
)
from ..runtime import SparseRMError, process_state, shown
from .config import SparseRMTrainingConfig
from .represented_texts import check_enough

logger = logging.getLogger(__name__)

COLUMN = "objective"
RESERVED = ("chosen", "rejected")  # names under which a trainer logs the two groups of latents


class ObjectiveRows(NamedTuple):
    """The rows of one objective.

    Attributes:
        rows: The rows.
        numbers: Number of each row in the original data, from 1; None if `rows` is all of the data.
    """

    rows: Any
    numbers: list[int] | None = None


def load_objectives(sources: Sequence[str], split: str = "train") -> Dataset | dict[str, Dataset]:
    """Load preference pairs from one source, or from several sources, each of which names an objective.

    Args:
        sources: Files or Hub ids; see `load_preferences`.
        split: Split of each source.

    Raises:
        SparseRMError: A source cannot be loaded, or two sources have the same name.
    """
    if len(sources) == 1:
        return load_preferences(sources[0], split)
    names = [re.sub(r"\.(jsonl?|csv|parquet)(\.gz)?$", "", Path(source).name) for source in sources]
    _check_names(names)
    return {name: load_preferences(source, split) for name, source in zip(names, sources, strict=True)}


def split_objectives(dataset: Any, args: SparseRMTrainingConfig) -> dict[str, ObjectiveRows]:
    """Split training pairs by objective.

    Args:
        dataset: Preference pairs, perhaps with a column `objective`; or a mapping from objectives to preference pairs.
        args: Settings.

    Returns:
        The rows of each objective by its name, in the order of the data. If there are not several objectives, all rows
        are under an empty name.

    Raises:
        SparseRMError: There are no pairs, some rows have no objective, a name is empty, repeated or reserved, or a
            setting does not fit several objectives.
    """
    if dataset is None or (isinstance(dataset, Mapping) and not dataset):
        raise SparseRMError("train_dataset is missing: pass preference pairs, see load_preferences.")
    if isinstance(dataset, Mapping) and not isinstance(dataset, DatasetDict):
        if len(dataset) < 2:
            return {"": ObjectiveRows(*dataset.values())}
        _check_settings(args)
        return _of_datasets(dataset)
    of_rows = read_objectives(dataset) or []
    indices: dict[str, list[int]] = {}
    for i, name in enumerate(of_rows):
        indices.setdefault(name, []).append(i)
    if len(indices) < 2:
        return {"": ObjectiveRows(dataset)}
    _check_settings(args)
    _check_names(list(indices))
    take = dataset.select if isinstance(dataset, Dataset) else lambda of: [dataset[i] for i in of]
    return {name: ObjectiveRows(take(of), [i + 1 for i in of]) for name, of in indices.items()}


def _of_datasets(datasets: Mapping[str, Any]) -> dict[str, ObjectiveRows]:
    _check_names(list(datasets))
    for name, rows in datasets.items():
        if read_objectives(rows):
            raise SparseRMError(
                f"The pairs of the objective {shown(name)} have a column `{COLUMN}`, but each dataset is one "
                "objective: give a single dataset, or remove the column."
            )
    return {name: ObjectiveRows(rows) for name, rows in datasets.items()}


def read_objectives(rows: Any) -> list[str] | None:
    """Read the objective of each row from the column `objective`; None without such a column, or if it is empty.

    Args:
        rows: A `datasets.Dataset` or a list of rows. Rows of any other type have no objectives.

    Raises:
        SparseRMError: Some rows have an objective and others have none, or an objective is not a string.
    """
    given: list[Any] = []
    if isinstance(rows, Dataset):
        given = list(rows[COLUMN]) if COLUMN in rows.column_names else []
    elif isinstance(rows, (list, tuple)):
        given = [row.get(COLUMN) if isinstance(row, Mapping) else None for row in rows]
    if all(value in (None, "") for value in given):
        return None
    source = rows.info.dataset_name or "" if isinstance(rows, Dataset) else ""
    for number, value in enumerate(given, 1):
        if value in (None, ""):
            raise SparseRMError(
                f"{row_name(number, source)} has no `{COLUMN}`, but other rows have one: name the objective of every "
                "row, or remove the column."
            )
        if not isinstance(value, str):
            raise SparseRMError(f"{row_name(number, source)}, `{COLUMN}` is {shown(value)}, but must be a string.")
    return given


def tokenize_objectives(rows: Mapping[str, ObjectiveRows], encoder: ChatEncoder) -> dict[str, TokenizedPreferences]:
    """Tokenise the training pairs of each objective; see `tokenize_preferences`.

    Raises:
        SparseRMError: A row is malformed, or an objective has too few usable pairs.
    """
    found = {}
    for name, (of_objective, numbers) in rows.items():
        with naming(name):
            found[name] = tokenize_preferences(of_objective, encoder, numbers)
            if name:
                check_enough(len(found[name]))
        if process_state().is_main_process:
            what = f"Training data of the objective {shown(name)}" if name else "Training data"
            logger.info("%s: %s", what, found[name].summary())
    return found


@dataclass(frozen=True)
class EvaluationPairs:
    """Preference pairs to evaluate on.

    Attributes:
        pairs: The pairs.
        own: Indices of the pairs that belong to each objective; empty without objectives, or if the rows have no
            column `objective`.
    """

    pairs: TokenizedPreferences
    own: dict[str, np.ndarray]

    @classmethod
    def of(cls, rows: Any, encoder: ChatEncoder, objectives: Collection[str]) -> EvaluationPairs:
        """Tokenise evaluation pairs, and find the pairs of each objective.

        Args:
            rows: Preference pairs in any of TRL's formats.
            encoder: Encoder of the reward model.
            objectives: Names of the objectives; empty for an ordinary reward model.

        Raises:
            SparseRMError: A row is malformed, or has an objective that the reward model does not have.
        """
        of_rows = (read_objectives(rows) or []) if objectives else []
        unknown = sorted(set(of_rows) - set(objectives))
        if unknown:
            raise SparseRMError(
                f"The evaluation pairs have the objective {shown(unknown[0])}, but those of the training pairs are "
                f"{list_names(objectives)}: give pairs of these objectives, or remove the column `{COLUMN}`."
            )
        pairs = tokenize_preferences(rows, encoder)
        if process_state().is_main_process:
            logger.info("Evaluation data: %s", pairs.summary())
        own: dict[str, list[int]] = {name: [] for name in objectives}
        for number, row in enumerate(pairs.rows if of_rows else []):
            own[of_rows[row]].append(number)
        return cls(pairs, {name: np.array(numbers) for name, numbers in own.items() if numbers})


@contextmanager
def naming(objective: str) -> Iterator[None]:
    """Add an objective's name to a `SparseRMError` of the `with` block; an empty name adds nothing."""
    try:
        yield
    except SparseRMError as error:
        if not objective:
            raise
        raise SparseRMError(f"The objective {shown(objective)} cannot be trained: {error}") from error


def _check_names(names: Sequence[str]) -> None:
    if "" in names or len({*names, *RESERVED}) < len(names) + len(RESERVED):
        raise SparseRMError(
            f"The objectives are named {list_names(names)}, but each must have a name of its own other than "
            f"{' and '.join(RESERVED)}: rename a dataset, or the objective in its rows."
        )


def _check_settings(args: SparseRMTrainingConfig) -> None:
    for name, unfit, why in (
        ("head_type", args.head_type != "linear", "only linear heads have a sum with one term for each latent"),
        ("adapter_rank", args.adapter_rank, "an adapter would change the base model for one of them"),
        ("ensemble", args.ensemble, "the combined model would not hold it"),
    ):
        if unfit:
            raise SparseRMError(
                f"{name} is {getattr(args, name)}, but there are several objectives, and {why}: leave {name} out, or "
                "train a model for each objective."
            )
