"""Load rows from local files, standard input and the Hub, without looking at their columns.

`datasets` takes more than a second to import, and JSON Lines do not need it: it is imported where it is used.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..runtime import SparseRMError, reason
from .data_sources import DataSource
from .preferences import FORMATS
from .row_checks import MOST_NESTED, check_fields, list_names, row_name

if TYPE_CHECKING:
    from datasets import Dataset

MOST_CHARACTERS = 2**24  # of a line of JSON Lines, and of a packed .json file
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def _open_text(path: Path) -> TextIO:
    encoding = "utf-8-sig"  # a byte order mark, which some editors write, is no part of the first row
    return gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding)


def iterate_json(path: Path | TextIO) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines stream or file (.gz too), or of a .json file that holds one list.

    Raises:
        SparseRMError: A line is not a JSON object (the error names its number), or the file is not text.
    """
    name = str(path) if isinstance(path, Path) else "standard input"
    try:
        with _open_text(path) if isinstance(path, Path) else path as stream:
            lines: Iterable[str] = _lines_of(stream, name)
            if isinstance(path, Path) and ".json" in path.suffixes:
                content = stream.read(MOST_CHARACTERS + 1 if path.suffix == ".gz" else -1)
                if len(content) > MOST_CHARACTERS and path.suffix == ".gz":
                    raise SparseRMError(
                        f"{name} unpacks to more than {MOST_CHARACTERS:,} characters: write JSON Lines, a .jsonl.gz "
                        "file with one row a line."
                    )
                if content.lstrip().startswith("["):
                    for number, row in enumerate(_parsed(content, name), 1):
                        yield _checked_row(row, f"{name}: entry {number}")
                    return
                lines = content.split("\n")  # not splitlines: a string may hold other line separators
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{name}: line {number}"
                    yield _checked_row(_parsed(line.removeprefix("\ufeff"), where), where)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SparseRMError(f"{name} cannot be read as text: {error}.") from None


def _lines_of(stream: TextIO, name: str) -> Iterator[str]:
    """Yield the lines of a stream.

    Raises:
        SparseRMError: A line is longer than ``MOST_CHARACTERS``: a few packed kilobytes may hold a line of gigabytes.
    """
    for number in count(1):
        line = stream.readline(MOST_CHARACTERS + 1)
        if len(line) > MOST_CHARACTERS:
            raise SparseRMError(
                f"{name}: line {number} has more than {MOST_CHARACTERS:,} characters, which no row may have: split it "
                "into rows, one a line."
            )
        if not line:
            return
        yield line


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > MOST_NESTED and _is_too_nested(value):
            raise RecursionError
        return value
    except json.JSONDecodeError as error:
        line = "" if "line" in where.rpartition(":")[2] else f": line {error.lineno}"
        raise SparseRMError(f"{where}{line} is broken JSON ({error.msg}).") from None
    except ValueError:
        raise SparseRMError(
            f"{where} has a number with thousands of digits, which Python does not parse: write it as a string."
        ) from None
    except RecursionError:
        raise SparseRMError(
            f"{where} holds lists or objects that are nested more than {MOST_NESTED} deep: flatten them, or leave "
            "that field out."
        ) from None


def _is_too_nested(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_NESTED + 1):  # the row itself is an object, and its fields may be nested MOST_NESTED deep
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(item, (dict, list)) for item in level)


def _checked_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SparseRMError(
            f"{where} is of the type {type(row).__name__}, not a JSON object such as "
            '{"chosen": "...", "rejected": "..."}.'
        )
    return row


def _suffix(source: str) -> str | None:
    return next((suffix for suffix in Path(source).suffixes if suffix in SUFFIXES), None)


def check_dataset(rows: Any) -> None:
    """Raise a `SparseRMError` if all splits of a dataset were given instead of one split."""
    from datasets import DatasetDict, IterableDatasetDict

    if isinstance(rows, (DatasetDict, IterableDatasetDict)):
        raise SparseRMError(
            f"A DatasetDict with the splits {', '.join(map(str, rows))} was given, but one dataset is needed: pass "
            f"one split, such as dataset[{next(iter(rows), 'train')!r}]."
        )


def load_preferences(source: str, split: str = "train") -> Dataset:
    """Load preference pairs.

    Args:
        source: A local .json, .jsonl, .jsonl.gz, .csv or .parquet file, or the id of a dataset on the Hub.
        split: Split of a dataset on the Hub; slices such as `train[:1000]` work for local files too.

    Raises:
        SparseRMError: The file is missing, empty, broken or of another kind.

    Example:
        ```python
        from sparserm_hf import load_preferences

        pairs = load_preferences("my-pairs.jsonl", "train[:100]")
        print(pairs[0]["chosen"])
        ```
    """
    path, suffix = Path(source), _suffix(source)
    if not suffix:
        if path.is_file():
            raise SparseRMError(f"{source} is not a .json, .jsonl, .jsonl.gz, .csv or .parquet file.")
        return DataSource.note(_from_hub(source, None, split, streaming=False), source)
    if not path.is_file():
        raise SparseRMError(f"There is no file {source}.")
    start, stop = _slice_of(split)
    dataset = _from_table(path, suffix) if suffix in (".csv", ".parquet") else _from_json(source)
    if len(dataset) == 0:
        raise SparseRMError(f"{source} is empty. {FORMATS}")
    rows_of_split = range(len(dataset))[start:stop]
    if not rows_of_split:
        raise SparseRMError(
            f"{source} has {len(dataset)} rows, so the split {split!r} is empty: choose a split that holds rows."
        )
    dataset.info.dataset_name = source_name(source, split)  # for errors about its rows
    return dataset.select(rows_of_split)


def _from_json(source: str) -> Dataset:
    from datasets import Dataset

    rows = list(iterate_json(Path(source)))
    try:
        # The columns of all rows: `from_list` alone takes those of the first row and drops every other column.
        columns = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
    except Exception as error:  # an error of pyarrow, for columns of mixed types
        for number, row in enumerate(rows, 1):
            check_fields(row, row_name(number, source))  # if one row alone is at fault, the error names it
        raise SparseRMError(f"{source}: the rows do not have the same form ({reason(error)}). {FORMATS}") from error


def _from_table(path: Path, suffix: str) -> Dataset:
    from datasets import Dataset, load_dataset

    try:
        if suffix == ".parquet":
            return load_dataset("parquet", data_files=str(path), split="train")
        return Dataset.from_list(list(_csv_rows(path)))
    except SparseRMError:
        raise
    except Exception as error:  # errors of csv and pyarrow
        raise SparseRMError(f"{path} cannot be read as {suffix[1:]}: {reason(error).rstrip('.')}.") from error


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield rows whose cells are strings, exactly as written: `NA`, `True` and `007` are answers like any other."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise SparseRMError(
                f"{path} has two columns with the same name: rename one of the columns {list_names(names)}."
            )
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) != len(names):
                raise SparseRMError(
                    f"{row_name(number, str(path))} has {len(cells)} cells, but there are {len(names)} columns: put "
                    "a cell that holds a comma between quotation marks."
                )
            yield dict(zip(names, cells, strict=True))


def _from_hub(source: str, config: str | None, split: str, streaming: bool) -> Any:
    from datasets import load_dataset

    try:
        dataset = load_dataset(source, config, split=split, streaming=streaming)
    except Exception as error:  # datasets and huggingface_hub raise a dozen kinds
        raise SparseRMError(f"The dataset {source!r}, split {split!r}, cannot be loaded: {reason(error)}") from error
    check_dataset(dataset)
    return dataset


def source_name(source: str, split: str) -> str:
    """Name a source in errors about its rows, with a split that starts after row 1: its rows are renumbered from 1."""
    if source == "-":
        return ""
    return f"{source}, {split}" if "[" in split and _slice_of(split)[0] else source


def _slice_of(split: str) -> tuple[int, int | None]:
    """Parse a split such as `train[:1000]` of a local file into the first row and the row after the last."""
    inner = split.partition("[")[2].rstrip("]")
    start, colon, stop = inner.partition(":")
    if inner and (not colon or not all(part == "" or part.isdecimal() for part in (start, stop))):
        raise SparseRMError(f"The split {split!r} of a local file must look like train, train[:1000] or train[200:].")
    return int(start or 0), int(stop) if stop else None


def iterate_rows(source: str, split: str = "train", config: str | None = None) -> Iterable[Mapping[str, Any]]:
    """Iterate over the rows of a local file, or of a dataset on the Hub, which is streamed.

    Args:
        source: A local .json, .jsonl, .jsonl.gz, .csv, .parquet or .txt file (one text a line), a Hub id, or `-` for
            JSON Lines on standard input.
        split: Split of a dataset on the Hub; slices such as `train[:1000]` work for local files too.
        config: Configuration of a dataset on the Hub that has several.

    Raises:
        SparseRMError: The source is missing, broken or of another kind.
    """
    path, suffix = Path(source), _suffix(source)
    if source == "-":
        return islice(iterate_json(sys.stdin), *_slice_of(split))
    if path.suffix == ".txt":
        return islice(_lines(path), *_slice_of(split))
    if path.is_file() and suffix in (".json", ".jsonl"):
        return islice(iterate_json(path), *_slice_of(split))
    if path.exists() or suffix:
        return load_preferences(source, split)
    return _from_hub(source, config, split, streaming=True)


def _lines(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise SparseRMError(f"There is no file {path}.")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from ({"text": line.rstrip("\n")} for line in _lines_of(stream, str(path)) if line.strip())
    except UnicodeDecodeError as error:
        raise SparseRMError(f"{path} cannot be read as text: {error}.") from None
