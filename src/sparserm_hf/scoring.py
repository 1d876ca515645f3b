"""Score texts and pairs with a reward model: streaming, in the order of the input, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .errors import SparseRMError, reason
from .modeling.configuration_sparserm import SparseRMConfig
from .modeling.modeling_sparserm import SparseRMForSequenceClassification
from .preferences.templates import encode, keep_end
from .preferences.texts import texts_of_row
from .representations import batch_tokens, fingerprint_module, pad_texts, plan_batches

CHUNK_ROWS = 512  # rows that are sorted by length and written together


def load_reward_model(
    name: str, device: torch.device, dtype: str = "auto", revision: str | None = None
) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a SparseRM checkpoint and its tokenizer.

    Raises:
        SparseRMError: It is missing, broken or something else than a SparseRM.
    """
    try:
        settings, _ = SparseRMConfig.get_config_dict(name, revision=revision)
        if settings.get("model_type") != SparseRMConfig.model_type:
            raise SparseRMError(f"it is a {settings.get('model_type')}, not a SparseRM reward model.")
        model = SparseRMForSequenceClassification.from_pretrained(name, dtype=dtype, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {reason(error)}") from error
    return model.to(device), tokenizer


def score_token_ids(model: SparseRMForSequenceClassification, texts: list[list[int]]) -> list[float]:
    """Rewards of texts, in batches of similar length.

    Args:
        model: The reward model.
        texts: Token ids.
    """
    device = model.directions.device
    rewards = [0.0] * len(texts)
    for batch in plan_batches([len(text) for text in texts], batch_tokens(device)):
        ids, mask = pad_texts([texts[i] for i in batch], device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
        for i, reward in zip(batch, logits, strict=True):
            rewards[i] = reward
    return rewards


def score_rows(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    max_length: int | None = None,
    first_number: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield the input rows with their rewards added, in order.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `texts_of_row` takes them.
        max_length: Longer texts lose their start; by default as long as in training.
        first_number: Number of the first row, for errors.

    Raises:
        SparseRMError: A row is of another form, or empty.
    """
    longest = max_length or tokenizer.model_max_length
    numbered = enumerate(rows, first_number)
    while chunk := list(islice(numbered, CHUNK_ROWS)):
        names, ids = [], []
        for number, row in chunk:
            texts = texts_of_row(row, number)
            names.append(list(texts))
            for text in texts.values():
                ids.append(keep_end(encode(tokenizer, text), longest, tokenizer.bos_token_id))
                if not ids[-1]:
                    raise SparseRMError(f"Row {number} has an empty text: there is nothing to score.")
        rewards = iter(score_token_ids(model, ids))
        for (_, row), columns in zip(chunk, names, strict=True):
            yield row | {name: next(rewards) for name in columns}


def score_to_file(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    output: Path,
    max_length: int | None = None,
) -> int:
    """Score rows into a JSON Lines file; a run that was killed goes on where it stopped.

    Until all rows are scored they are in `<output>.<fingerprint of the model>.partial`. A later run keeps those that
    begin its own input and scores the rest.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `texts_of_row` takes them.
        output: The file to write.
        max_length: See `score_rows`.

    Returns:
        The number of rows that were there from a run before.
    """
    identity = f"{fingerprint_module(model)} {model.config.to_json_string()} {max_length}"
    fingerprint = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
    partial = output.with_name(f"{output.name}.{fingerprint}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    done, rest = _rows_to_score(partial, iter(rows))
    with partial.open("a", encoding="utf-8") as file:
        for row in score_rows(model, tokenizer, rest, max_length, done + 1):
            write_row(row, file)
    partial.replace(output)
    return done


def _rows_to_score(partial: Path, rows: Iterator[dict[str, Any]]) -> tuple[int, Iterator[dict[str, Any]]]:
    """Cut a partial file after the last line that belongs to the rows; returns their number and the other rows."""
    done = size = 0
    unscored: list[dict[str, Any]] = []
    with partial.open("rb") as file:
        for line in file:
            if (row := next(rows, None)) is None:
                break
            whole = line.endswith(b"\n")  # the last line may have been cut off by the kill
            if not whole or (scored := json.loads(line)) | row != scored:
                unscored.append(row)
                break
            done, size = done + 1, size + len(line)
    os.truncate(partial, size)
    return done, chain(unscored, rows)


def write_row(row: dict[str, Any], file: TextIO) -> None:
    """Write one row as a line of JSON, at once."""
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
