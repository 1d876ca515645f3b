"""Score texts and pairs with a reward model: streaming, in the order of the input, resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from scipy.special import expit
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .base_models import longest_text
from .checkpoints import replacing_file
from .errors import SparseRMError, reason
from .modeling.configuration_sparserm import SparseRMConfig
from .modeling.modeling_sparserm import SparseRMForSequenceClassification
from .preferences.templates import Text, encode, keep_end
from .preferences.texts import texts_of_row
from .processes import process_state
from .representations import batch_tokens, fingerprint_module, pad_texts, plan_batches

PROBABILITY = "chosen_probability"  # what `probabilities` adds to a pair
CHUNK_ROWS = 512  # rows that are sorted by length and written together


def check_reward_model(name: str, revision: str | None = None) -> None:
    """Raise a `SparseRMError` unless there is a SparseRM checkpoint; only its configuration is read."""
    try:
        settings, _ = SparseRMConfig.get_config_dict(name, revision=revision)
        if settings.get("model_type") != SparseRMConfig.model_type:
            raise ValueError(f"it is a {settings.get('model_type')}, not a SparseRM reward model.")
    except (OSError, ValueError) as error:
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {reason(error)}") from error


def load_reward_model(
    name: str, device: torch.device, dtype: str = "auto", revision: str | None = None
) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a SparseRM checkpoint and its tokenizer.

    Raises:
        SparseRMError: It is missing, broken or something else than a SparseRM.
    """
    check_reward_model(name, revision)
    try:
        model = SparseRMForSequenceClassification.from_pretrained(name, dtype=dtype, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {reason(error)}") from error
    return model.to(device), tokenizer


class Scores(NamedTuple):
    """What a reward model makes of N texts.

    Attributes:
        features: (N, F) what its head read.
        rewards: (N,)
    """

    features: np.ndarray
    rewards: np.ndarray


def score_token_ids(model: SparseRMForSequenceClassification, texts: list[list[int]]) -> Scores:
    """Score texts, given as token ids, in batches of similar length."""
    device = model.directions.device
    features, rewards = np.zeros((len(texts), model.config.num_features)), np.zeros(len(texts))
    for batch in plan_batches([len(text) for text in texts], batch_tokens(device)):
        ids, mask = pad_texts([texts[i] for i in batch], device)
        with torch.inference_mode():
            read = model.extract_features(ids, mask)
            features[batch] = read.double().cpu().numpy()
            rewards[batch] = model.reward(read)[:, 0].double().cpu().numpy()
    return Scores(features, rewards)


def chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into chunks; each is scored by itself, so that it gets the same bits wherever that happens."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, CHUNK_ROWS)):
        yield chunk


def text_limit(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> int:
    """Most tokens of a text: what is asked for, by default as in training; never more than the base model reads."""
    return longest_text(model.config, max_length or tokenizer.model_max_length)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: Text, max_length: int | None, number: int) -> list[int]:
    """Token ids of a text as training saw them: through the chat template, its end kept where it is too long.

    Args:
        tokenizer: The reward model's.
        text: A string or messages.
        max_length: Most tokens; by default as in training.
        number: Of its row, for the error.

    Raises:
        SparseRMError: It is empty.
    """
    ids = keep_end(encode(tokenizer, text), max_length or tokenizer.model_max_length, tokenizer.bos_token_id)
    if not ids:
        raise SparseRMError(f"Row {number} has an empty text: there is nothing to score.")
    return ids


def score_rows(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    max_length: int | None = None,
    first_number: int = 1,
    probabilities: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the input rows with their rewards added, in order.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `texts_of_row` takes them.
        max_length: Longer texts lose their start; by default as long as in training.
        first_number: Number of the first row, for errors.
        probabilities: Whether pairs also get `chosen_probability`, that of being preferred to the other.

    Raises:
        SparseRMError: A row is of another form, or empty.
    """
    max_length = text_limit(model, tokenizer, max_length)
    for chunk in chunks(rows):
        texts = [texts_of_row(row, number) for number, row in enumerate(chunk, first_number)]
        ids = [
            token_ids(tokenizer, text, max_length, number)
            for number, named in enumerate(texts, first_number)
            for text in named.values()
        ]
        first_number += len(chunk)
        rewards = iter(score_token_ids(model, ids).rewards.tolist())
        for row, named in zip(chunk, texts, strict=True):
            found = {name: next(rewards) for name in named}
            if probabilities and len(found) == 2:
                chosen, rejected = found.values()
                found[PROBABILITY] = float(expit((chosen - rejected) / model.config.reward_temperature))
            yield row | found


def run_fingerprint(
    model: SparseRMForSequenceClassification, max_length: int | None, probabilities: bool = False
) -> str:
    """What a run's unfinished parts are named by: everything but the rows that decides about what they hold."""
    identity = f"{fingerprint_module(model)} {model.config.to_json_string()} {max_length} {probabilities}"
    return hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()


def score_to_file(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    output: Path,
    max_length: int | None = None,
    probabilities: bool = False,
) -> int:
    """Score rows into a JSON Lines file; a run that was killed goes on where it stopped.

    Each chunk of rows becomes a file in `<output>.<fingerprint of the model>.parts`, named by its number and content;
    those that are there are not scored again. Under `accelerate launch` each process scores its share of them, and the
    main one joins them when all are done.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `texts_of_row` takes them, the same in every process.
        output: The file to write.
        max_length: See `score_rows`.
        probabilities: See `score_rows`.

    Returns:
        The number of rows that were there from a run before.
    """
    state = process_state()
    folder = output.with_name(f"{output.name}.{run_fingerprint(model, max_length, probabilities)}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    state.wait_for_everyone()  # until all have looked
    parts, kept, first_number = [], 0, 1
    for number, chunk in enumerate(chunks(rows)):
        digest = hashlib.blake2b("".join(map(json_line, chunk)).encode(), digest_size=8).hexdigest()
        parts.append(folder / f"{number:06d}-{digest}.jsonl")
        if parts[-1].name in there:
            kept += len(chunk)
        elif number % state.num_processes == state.process_index:
            with replacing_file(parts[-1]) as temporary, temporary.open("w", encoding="utf-8") as file:
                scored = score_rows(model, tokenizer, chunk, max_length, first_number, probabilities)
                file.writelines(map(json_line, scored))
        first_number += len(chunk)
    state.wait_for_everyone()
    if state.is_main_process:
        with replacing_file(output) as temporary, temporary.open("wb") as file:
            for part in parts:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, file)
        shutil.rmtree(folder)
    return kept


def json_line(row: dict[str, Any]) -> str:
    """A row as a line of JSON; dates and the like become text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
