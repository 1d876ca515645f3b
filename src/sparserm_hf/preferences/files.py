"""Preference pairs and other rows out of files and the Hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset, load_dataset

from ..errors import SparseRMError, reason

FORMS = "All of them must be strings, or all lists of {'role', 'content'}."
FORMATS = f"Each row needs `chosen` and `rejected`, and may have a `prompt` and a number `margin`. {FORMS}"


def _open_text(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def iterate_json(path: Path | TextIO) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines stream or file (.gz too), or of a .json file that holds one list.

    Raises:
        SparseRMError: A line is not a JSON object; its number is told.
    """
    name = str(path) if isinstance(path, Path) else "standard input"
    try:
        with _open_text(path) if isinstance(path, Path) else path as stream:
            lines: Iterable[str] = stream
            if isinstance(path, Path) and ".json" in path.suffixes:
                content = stream.read()
                if content.lstrip().startswith("["):
                    for number, row in enumerate(json.loads(content), 1):
                        yield _checked_row(row, f"{name}: entry {number}")
                    return
                lines = content.split("\n")  # not splitlines: a string may hold other line separators
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parsed_row(line, f"{name}: line {number}")
    except json.JSONDecodeError as error:
        raise SparseRMError(f"{name}: line {error.lineno} is broken JSON ({error.msg}).") from None
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise SparseRMError(f"{name} cannot be read as text: {error}.") from None


def _parsed_row(line: str, where: str) -> dict[str, Any]:
    try:
        return _checked_row(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise SparseRMError(f"{where} is broken JSON ({error.msg}).") from None


def _checked_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SparseRMError(f'{where} is not a JSON object such as {{"chosen": "...", "rejected": "..."}}.')
    return row


def load_preferences(source: str, split: str = "train") -> Dataset:
    """Load preference pairs.

    Args:
        source: A local .json, .jsonl, .jsonl.gz, .csv or .parquet file, or the id of a dataset on the Hub.
        split: Which split of a dataset on the Hub; slices such as `train[:1000]` work for local files too.

    Raises:
        SparseRMError: The file is missing, empty, broken or of another kind.
    """
    path = Path(source)
    suffix = next((s for s in path.suffixes if s in (".json", ".jsonl", ".csv", ".parquet")), None)
    if not suffix:
        if path.is_file():
            raise SparseRMError(f"{source} is not a .json, .jsonl, .jsonl.gz, .csv or .parquet file.")
        try:
            return load_dataset(source, split=split)
        except Exception as error:  # datasets and huggingface_hub raise a dozen kinds
            raise SparseRMError(
                f"The dataset {source!r}, split {split!r}, cannot be loaded: {reason(error)}"
            ) from error
    if not path.is_file():
        raise SparseRMError(f"There is no file {source}.")
    if suffix in (".json", ".jsonl"):
        rows = list(iterate_json(path))
        try:
            # Of every row: left to itself it takes the columns of the first and drops what others have besides.
            columns = dict.fromkeys(name for row in rows for name in row)
            dataset = Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
        except Exception as error:  # pyarrow's, for columns of mixed kinds
            raise SparseRMError(f"{source}: the rows are not of one form ({error}). {FORMATS}") from error
    else:
        try:
            dataset = load_dataset(suffix[1:], data_files=source, split="train")
        except Exception as error:
            raise SparseRMError(f"{source} cannot be read as {suffix[1:]}: {error}") from error
    if len(dataset) == 0:
        raise SparseRMError(f"{source} is empty. {FORMATS}")
    start, stop = _slice_of(split, len(dataset))
    return dataset.select(range(start, stop))


def _slice_of(split: str, length: int) -> tuple[int, int]:
    """The rows that a split such as `train`, `train[:1000]` or `train[1000:]` names in a local file."""
    inner = split.partition("[")[2].rstrip("]")
    if not inner:
        return 0, length
    start, colon, stop = inner.partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (start, stop)):
        raise SparseRMError(f"The split {split!r} of a local file must look like train, train[:1000] or train[200:].")
    return min(int(start or 0), length), min(int(stop or length), length)
