"""Score a file of rows into another file; a killed run continues from its finished chunks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..base_models import fingerprint_module
from ..conversations import iterate_rows
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import check_output_file, process_state, replacing_file
from .reward_models import encoder_of, load_reward_model
from .scored_rows import ROW_ERROR, add_rewards, chunks


def run_fingerprint(
    model: SparseRMForSequenceClassification, max_length: int | None, probabilities: bool = False
) -> str:
    """Hash everything that changes the rewards of a run, except its rows; the hash names the folder of its parts."""
    identity = f"{fingerprint_module(model)} {model.config.to_json_string()} {max_length} {probabilities}"
    return hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()


def fingerprint_rows(rows: Iterable[dict[str, Any]]) -> str:
    """Hash the content of rows.

    Example:
        >>> fingerprint_rows([{"text": "Rome"}])
        '096276386fce492a'
    """
    return hashlib.blake2b("".join(map(json_line, rows)).encode(), digest_size=8).hexdigest()


class ScoredFile(NamedTuple):
    """Report of the scoring of a file.

    Attributes:
        kept: Number of rows that an earlier, killed run had scored.
        errors: One sentence for each row that could not be scored.
    """

    kept: int
    errors: list[str]


def score_file(
    model: str,
    source: str | Path,
    output: str | Path,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    probabilities: bool = False,
) -> ScoredFile:
    """Score a file of rows with a saved reward model, and write the rows with their rewards as JSON Lines.

    Args:
        model: Folder or Hub id of the reward model.
        source: File with rows as `score_rows` takes them: .json, .jsonl(.gz), .csv or .parquet; `-` is standard input.
        output: File to write. It must not exist.
        max_length: Length limit of a text in tokens. A longer text loses its start. The default is the limit of
            training.
        dtype: Data type to run in; see `load_reward_model`.
        revision: Revision of the reward model on the Hub.
        probabilities: Also add `chosen_probability` to pairs: the probability that `chosen` is preferred.

    Returns:
        The number of rows that an earlier, killed run had scored, and an error for each row that could not be scored.

    Raises:
        SparseRMError: The model cannot be loaded, a line of `source` is broken, or `output` exists.

    Example:
        ```python
        from sparserm_hf import score_file

        scored = score_file("my-reward-model", "my-test-pairs.jsonl", "scored.jsonl", probabilities=True)
        print(scored.errors)
        ```
    """
    output, name = Path(output), str(source)
    check_output_file(output)
    rows = iterate_rows(name)
    loaded = load_reward_model(model, dtype=dtype, revision=revision)
    rows = tqdm(rows, "Scoring", unit="row", delay=2, disable=not process_state().is_main_process)
    return score_to_file(*loaded, rows, output, max_length, probabilities, "" if name == "-" else name)


def score_to_file(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    output: Path,
    max_length: int | None = None,
    probabilities: bool = False,
    source: str = "",
) -> ScoredFile:
    """Score rows into a JSON Lines file; a killed run continues from its finished chunks.

    Each chunk of rows becomes a file in the folder `<output>.<fingerprint of the model>.parts`, named by its number
    and content. Chunks that an earlier run has finished are not scored again. Under `accelerate launch` each process
    scores its share of the chunks, and the main process joins them at the end.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `score_rows` takes them, the same in every process.
        output: File to write.
        max_length: Length limit of a text in tokens; see `score_rows`.
        probabilities: Also add `chosen_probability` to pairs.
        source: Name of the file that the rows come from, for errors.
    """
    state, encoder = process_state(), encoder_of(model, tokenizer, max_length)
    folder = output.with_name(f"{output.name}.{run_fingerprint(model, max_length, probabilities)}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    state.wait_for_everyone()  # no process writes a part before all processes have listed the folder
    parts, kept, first_number = [], 0, 1
    for number, chunk in enumerate(chunks(rows)):
        parts.append(folder / f"{number:06d}-{fingerprint_rows(chunk)}.jsonl")
        if parts[-1].name in there:
            kept += len(chunk)
        elif number % state.num_processes == state.process_index:
            with replacing_file(parts[-1]) as temporary, temporary.open("w", encoding="utf-8") as file:
                scored = add_rewards(model, encoder, chunk, first_number, probabilities, source)
                file.writelines(map(json_line, scored))
        first_number += len(chunk)
    state.wait_for_everyone()
    errors: list[str] = []
    if state.is_main_process:
        errors = _join(parts, output)
        shutil.rmtree(folder)
    return ScoredFile(kept, errors)


def _join(parts: list[Path], output: Path) -> list[str]:
    """Join the parts into one file, and return the errors of the rows."""
    errors: list[str] = []
    with replacing_file(output) as temporary, temporary.open("wb") as file:
        for part in parts:
            with part.open("rb") as lines:
                for line in lines:
                    file.write(line)
                    errors += row_errors(line)
    return errors


def row_errors(line: bytes) -> list[str]:
    r"""Return the error of a row, given as its line of JSON; an empty list if the row was scored.

    Example:
        >>> row_errors(b'{"text": "", "reward_error": "Row 1 is empty."}\n')
        ['Row 1 is empty.']
    """
    error = json.loads(line).get(ROW_ERROR) if ROW_ERROR.encode() in line else None
    return [error] if error else []


def json_line(row: dict[str, Any]) -> str:
    r"""Write a row as a line of JSON; values that JSON cannot hold, such as dates, become text.

    Example:
        >>> json_line({"text": "Rome", "reward": 1.5})
        '{"text": "Rome", "reward": 1.5}\n'
    """
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot encode
        line = json.dumps(row, default=str)
    return line + "\n"
