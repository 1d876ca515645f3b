"""Score Parquet files on a Ray cluster: Ray Data feeds a pool of actors, each of which holds the model."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from ..runtime import SparseRMError, reason, replacing_file, without_extra
from ..scoring import (
    ADDED,
    CHUNK_ROWS,
    ROW_ERROR,
    ScoredFile,
    add_rewards,
    check_reward_model,
    encoder_of,
    fingerprint_rows,
    load_reward_model,
    run_fingerprint,
)

try:
    import ray
    from ray.exceptions import RayError
except ModuleNotFoundError as error:
    raise without_extra("The Ray engine", error, "ray") from None

ROWS = b"sparserm_rows"  # key in the metadata of a part; the value is the fingerprint of the rows in the part
PART_CHUNKS = 8  # chunks of rows in an output file; a lost actor loses at most one file
MAX_BLOCKS = 1000  # maximum number of blocks, the units of work that Ray Data assigns to actors
CPUS_A_WORKER = 4  # if there is no GPU
# Ray writes its messages to its log files only, and sends no statistics.
QUIET = {"RAY_DATA_LOG_LEVEL": "CRITICAL", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_USAGE_STATS_ENABLED": "0"}

Part = dict[str, Any]  # `number`, `file`, first row `start` and number of `rows`: a row of a Ray data set


def parquet_files(source: Path) -> list[Path]:
    """List a Parquet file, or the Parquet files of a folder by name.

    Raises:
        SparseRMError: There are no Parquet files.
    """
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not files or not all(file.suffix == ".parquet" and file.is_file() for file in files):
        raise SparseRMError(
            f"The Ray engine reads a .parquet file or a folder of them, and {source} is neither: write the rows with "
            "to_parquet of datasets, or leave --engine out."
        )
    return files


def plan_parts(files: list[Path]) -> list[Part]:
    """Cut files into parts of at most `PART_CHUNKS` chunks of rows; each part is from one file."""
    size = PART_CHUNKS * CHUNK_ROWS
    parts: list[Part] = []
    for file in files:
        total = pq.read_metadata(file).num_rows
        for start in range(0, total, size):
            rows = min(size, total - start)
            parts.append({"number": len(parts), "file": str(file), "start": start, "rows": rows})
    return parts


def fingerprint_files(files: list[Path]) -> str:
    """Hash the footers of Parquet files, which hold the offset, size, minimum and maximum of every column."""
    digest = hashlib.blake2b(digest_size=4)
    for file in files:
        with file.open("rb") as stream:
            stream.seek(-8 - pq.read_metadata(file).serialized_size, 2)
            digest.update(stream.read())
    return digest.hexdigest()


def read_rows(file: str, start: int, rows: int) -> pa.Table:
    """Read rows of a Parquet file; only the row groups with these rows are read."""
    source = pq.ParquetFile(file)
    sizes = [source.metadata.row_group(i).num_rows for i in range(source.num_row_groups)]
    ends = np.cumsum(sizes)
    first, last = np.searchsorted(ends, [start, start + rows - 1], side="right")
    groups = source.read_row_groups(list(range(first, last + 1)))
    return groups.slice(start - int(ends[first] - sizes[first]), rows)


def rows_of(path: Path) -> bytes | None:
    """Read the fingerprint of the rows in a part; None if the part is missing or broken."""
    if not path.exists():
        return None
    try:
        return (pq.read_table(path, page_checksum_verification=True).schema.metadata or {}).get(ROWS)
    except (OSError, pa.ArrowException):
        return None


class PartScorer:
    """An actor that holds the model and scores parts of the input into Parquet files.

    Args:
        output: Folder to write. Until the run is complete, its parts are in another folder beside it.
        source: Fingerprint of the input.
        model: Reward model: a folder that every node sees, or a Hub id.
        dtype: See `load_reward_model`.
        revision: See `load_reward_model`.
        max_length: See `score_rows`.
        probabilities: See `score_rows`.
    """

    def __init__(
        self,
        output: Path,
        source: str,
        model: str,
        dtype: str,
        revision: str | None,
        max_length: int | None,
        probabilities: bool,
    ):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, tokenizer = load_reward_model(model, device, dtype, revision)
        self.encoder = encoder_of(self.model, tokenizer, max_length)
        self.probabilities = probabilities
        fingerprint = f"{run_fingerprint(self.model, max_length, probabilities)}-{source}"
        self.folder = output.with_name(f"{output.name}.{fingerprint}.parts")

    def __call__(self, part: Part) -> dict[str, Any]:
        """Score a part unless its file exists. Errors are returned, because Ray would hide an exception."""
        path = self.folder / f"part-{part['number']:06d}.parquet"
        kept, error = False, ""
        try:
            table = read_rows(part["file"], part["start"], part["rows"])
            rows = table.to_pylist()
            kept = rows_of(path) == fingerprint_rows(rows).encode()
            if not kept:
                self.score(part, table, rows, path)
        except SparseRMError as wrong:
            error = str(wrong)
        except Exception as wrong:
            error = f"{type(wrong).__name__}: {reason(wrong)}."
        return {"rows": part["rows"], "kept": kept, "folder": str(self.folder), "error": error}

    def score(self, part: Part, table: pa.Table, rows: list[dict[str, Any]], path: Path) -> None:
        """Score a part into a file."""
        first = part["start"] + 1
        scored = list(add_rewards(self.model, self.encoder, rows, first, self.probabilities, part["file"]))
        table = table.drop_columns([name for name in ADDED if name in table.column_names])
        for name in ADDED:
            if name != ROW_ERROR and not any(name in row for row in scored):
                continue
            kind = pa.string() if name == ROW_ERROR else pa.float64()
            if name.endswith("by_objective"):
                kind = pa.struct([(objective, pa.float64()) for objective in self.model.config.objective_names])
            table = table.append_column(name, pa.array([row.get(name) for row in scored], kind))
        table = table.replace_schema_metadata((table.schema.metadata or {}) | {ROWS: fingerprint_rows(rows)})
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to the Ray cluster of `RAY_ADDRESS`, or start Ray on this machine.

    Raises:
        SparseRMError: The cluster failed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    started = not ray.is_initialized()
    ray.init(ignore_reinit_error=True, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    except RayError as error:
        raise SparseRMError(
            f"Ray gave up: {reason(error)}. The parts that were scored stay: run the same again."
        ) from error
    finally:
        if started:
            ray.shutdown()


def score_parts(parts: list[Part], arguments: tuple[Any, ...], workers: int | None) -> Iterator[dict[str, Any]]:
    """Score parts on a pool of actors; yield the answer of `PartScorer` to each part."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    workers = workers or gpus or max(1, cpus // CPUS_A_WORKER)
    share: Any = {"num_gpus": 1} if gpus else {"num_cpus": max(1, cpus // workers)}
    scored = ray.data.from_items(parts, override_num_blocks=min(len(parts), MAX_BLOCKS)).map(
        PartScorer,  # type: ignore[arg-type]  # Ray's annotation leaves out classes
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
        **share,
    )
    with tqdm(total=sum(part["rows"] for part in parts), desc="Scoring", unit="row", delay=2) as bar:
        for done in scored.iter_rows():
            if done["error"]:
                raise SparseRMError(f"{done['error']} What was scored before stays.")
            bar.update(done["rows"])
            yield done


def find_errors(output: Path) -> list[str]:
    """Return the errors of the rows that could not be scored, in the order of the rows."""
    errors: list[str] = []
    for path in sorted(output.glob("*.parquet")):
        column = pq.read_table(path, columns=[ROW_ERROR])[ROW_ERROR]
        errors += column.drop_null().to_pylist()
    return errors


def score_parquet(
    model: str,
    source: str | Path,
    output: str | Path,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    workers: int | None = None,
    probabilities: bool = False,
) -> ScoredFile:
    """Score Parquet files into a folder of Parquet files, on the Ray cluster of `RAY_ADDRESS` or on this machine.

    Rows keep their order. Until all rows are scored, finished parts are in `<output>.<fingerprint>.parts`; an
    interrupted run continues from them if the rows are the same. Parts of a lost actor go to another actor.

    Args:
        model: Reward model: a Hub id, or a folder that every node sees.
        source: A .parquet file or a folder of .parquet files that every node sees, with rows as in `score_rows`.
        output: Folder to write, which every node sees.
        max_length: See `score_rows`.
        dtype: See `load_reward_model`.
        revision: See `load_reward_model`.
        workers: Number of actors. Default: one for each GPU, or one for each four CPUs if there is no GPU.
        probabilities: See `score_rows`.

    Raises:
        SparseRMError: The input is not in Parquet files or has no rows, or the cluster failed.

    Example:
        ```python
        from datasets import Dataset
        from sparserm_hf import score_parquet
        Dataset.from_json("my-texts.jsonl").to_parquet("my-texts.parquet")
        score_parquet("my-reward-model", "my-texts.parquet", "scored")
        ```
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    files = parquet_files(source)
    parts = plan_parts(files)
    if not parts:
        raise SparseRMError(f"{source} holds no rows.")
    if workers is not None and workers < 1:
        raise SparseRMError(f"workers is {workers}, but must be at least 1.")
    check_reward_model(model, revision)
    name = str(Path(model).resolve()) if Path(model).is_dir() else model
    arguments = (output, fingerprint_files(files), name, dtype, revision, max_length, probabilities)
    with ray_cluster():
        done = list(score_parts(parts, arguments, workers))
    Path(done[0]["folder"]).rename(output)
    return ScoredFile(sum(part["rows"] * part["kept"] for part in done), find_errors(output))
