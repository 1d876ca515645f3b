"""Score texts and pairs with a reward model: streaming, in the order of the input, resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import expit
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .base_models import check_tokenizer, longest_text, move
from .conversations.encoding import ChatEncoder, TokenizedText
from .conversations.messages import row_name, shown
from .conversations.rows import check_row, texts_of_row
from .devices import as_numpy
from .errors import SparseRMError, kind_and_reason, reading
from .modeling.configuration_sparserm import SparseRMConfig
from .modeling.modeling_sparserm import SparseRMForSequenceClassification
from .processes import process_state
from .replacing import replacing_file
from .representations import batch_tokens, fingerprint_module, pad_texts, plan_batches

PROBABILITY = "chosen_probability"  # what `probabilities` adds to a pair
ROW_ERROR = "reward_error"  # what a row gets that cannot be scored
ADDED = ("reward", "chosen_reward", "rejected_reward", PROBABILITY, ROW_ERROR)
TRIAL, TRIAL_TOKENS = "A text that every reward model scores when it is loaded.", 8
CHUNK_ROWS = 512  # rows that are sorted by length and written together


def check_reward_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """Read the configuration of a SparseRM checkpoint, and nothing else.

    Raises:
        SparseRMError: There is none.
    """
    try:
        settings, _ = SparseRMConfig.get_config_dict(name, revision=revision)
        kind = settings.get("model_type")
        if kind != SparseRMConfig.model_type:
            raise ValueError(f"it is a {kind if isinstance(kind, str) else shown(kind)}, not a SparseRM reward model.")
        SparseRMConfig(**settings)
    except Exception as error:  # the file may hold anything: a list, objects nested a thousand deep
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {kind_and_reason(error)}.") from error
    return settings


def load_reward_model(
    name: str, device: torch.device, dtype: str = "auto", revision: str | None = None
) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a SparseRM checkpoint and its tokenizer: the new one, or the old one, where it is just being replaced.

    Args:
        name: Folder or Hub id.
        device: Where it runs.
        dtype: Type that it runs in: `float32`, `bfloat16`, `auto` for the one that training ran in, or `saved` for the
            one that its weights are saved in.
        revision: On the Hub.

    Raises:
        SparseRMError: It is missing, broken or something else than a SparseRM.
    """
    while True:
        folder = _identity(name)
        try:
            loaded = _load(name, device, dtype, revision)
        except SparseRMError:
            if _identity(name) == folder:
                raise
            continue
        if _identity(name) == folder:  # else files of both may have been read
            return loaded


def _identity(name: str) -> tuple[int, int] | None:
    """What tells a folder from the one that it is replaced by; None of a repository, whose commits do not change."""
    about = Path(name).stat() if Path(name).is_dir() else None
    return about and (about.st_ino, about.st_ctime_ns)


def _load(
    name: str, device: torch.device, dtype: str, revision: str | None
) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
    settings = check_reward_model(name, revision)
    dtype = {"auto": settings.get("run_dtype") or "auto", "saved": "auto"}.get(dtype, dtype)
    try:
        model = SparseRMForSequenceClassification.from_pretrained(name, dtype=dtype, revision=revision)
    except Exception as error:  # whatever a library does with files that do not go together
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {kind_and_reason(error)}.") from error
    with reading(f"The tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_tokenizer(tokenizer)
        if not tokenizer.is_fast:
            raise ValueError("it does not tell where its tokens stand in a text: save the fast one, a tokenizer.json")
    model = move(model, device)
    with reading(f"The reward model {name!r} scores nothing: it"):
        text = encoder_of(model, tokenizer).as_text(TRIAL)[:TRIAL_TOKENS]
        ids, mask = pad_texts([text or (0,)], device)
        with torch.inference_mode():
            if not model(ids, mask).logits.isfinite().all():
                raise ValueError("a text has a reward that is not finite")
    return model, tokenizer


class Scores(NamedTuple):
    """What a reward model makes of N texts.

    Attributes:
        features: (N, F) what its head read.
        rewards: (N,)
    """

    features: np.ndarray
    rewards: np.ndarray


def score_texts(model: SparseRMForSequenceClassification, texts: list[TokenizedText]) -> Scores:
    """Score texts in batches of similar length."""
    device = model.directions.device
    features, rewards = np.zeros((len(texts), len(model.config.latents))), np.zeros(len(texts))
    for batch in plan_batches([len(text.ids) for text in texts], batch_tokens(device)):
        ids, mask = pad_texts([texts[i].ids for i in batch], device)
        with torch.inference_mode():
            read = model.extract_features(ids, mask, responses=[texts[i].place for i in batch])
            features[batch] = as_numpy(read)
            rewards[batch] = as_numpy(model.reward(read)[:, 0])
    return Scores(features, rewards)


def check_rewards(rewards: Iterable[float], where: str) -> None:
    """Raise a `SparseRMError` unless the rewards of a row are numbers.

    Args:
        rewards: The rewards.
        where: The row, for the error.
    """
    if not np.isfinite([*rewards]).all():
        raise SparseRMError(
            f"{where} has a reward that is not finite: the base model overflows on it; try the type float32."
        )


def chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into chunks; each is scored by itself, so that it gets the same bits wherever that happens."""
    chunk: list[dict[str, Any]] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK_ROWS:
                yield chunk
                chunk = []
    except SparseRMError:  # a broken line: what was read before it is not lost
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def encoder_of(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> ChatEncoder:
    """What turns texts into the token ids that a reward model reads.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        max_length: Longer texts lose their start; by default as long as in training, never more than the base model
            reads.
    """
    limit = longest_text(model.config, max_length or tokenizer.model_max_length)
    vocabulary = model.get_input_embeddings().num_embeddings
    return ChatEncoder(tokenizer, model.config.response_marks, model.config.response_marker_ids, limit, vocabulary)


def score_rows(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    max_length: int | None = None,
    probabilities: bool = False,
    source: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the input rows with their rewards added, in order; see `add_rewards`.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `texts_of_row` takes them.
        max_length: Longer texts lose their start; by default as long as in training.
        probabilities: See `add_rewards`.
        source: See `add_rewards`.
    """
    encoder = encoder_of(model, tokenizer, max_length)
    return add_rewards(model, encoder, rows, probabilities=probabilities, source=source)


def add_rewards(
    model: SparseRMForSequenceClassification,
    encoder: ChatEncoder,
    rows: Iterable[dict[str, Any]],
    first_number: int = 1,
    probabilities: bool = False,
    source: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the input rows with their rewards added, in order.

    A row that cannot be scored gets `reward_error`, a sentence that says why, instead.

    Args:
        model: The reward model.
        encoder: Its encoder, see `encoder_of`.
        rows: Rows as `texts_of_row` takes them.
        first_number: Number of the first row, for errors.
        probabilities: Whether pairs also get `chosen_probability`, that of being preferred to the other.
        source: The file that the rows are in, for errors.
    """
    for chunk in chunks(rows):
        named: list[dict[str, TokenizedText] | str] = []
        for number, row in enumerate(chunk, first_number):
            check_row(row, where := row_name(number, source))
            try:
                texts = texts_of_row(row, where)
                named.append({name: encoder(text, where) for name, text in texts.items()})
            except SparseRMError as error:
                named.append(str(error))
        whole = [text for texts in named if isinstance(texts, dict) for text in texts.values()]
        rewards = iter(score_texts(model, whole).rewards.tolist())
        for number, (given, found) in enumerate(zip(chunk, named, strict=True), first_number):
            row = {name: value for name, value in given.items() if name not in ADDED}  # it may have been scored before
            if isinstance(found, str):
                yield row | {ROW_ERROR: found}
                continue
            added = {name: next(rewards) for name in found}
            try:
                check_rewards(added.values(), row_name(number, source))
            except SparseRMError as error:
                yield row | {ROW_ERROR: str(error)}
                continue
            if probabilities and len(added) == 2:
                chosen, rejected = added.values()
                added[PROBABILITY] = float(expit((chosen - rejected) / model.config.reward_temperature))
            yield row | added
        first_number += len(chunk)


def run_fingerprint(
    model: SparseRMForSequenceClassification, max_length: int | None, probabilities: bool = False
) -> str:
    """What a run's unfinished parts are named by: everything but the rows that decides about what they hold."""
    identity = f"{fingerprint_module(model)} {model.config.to_json_string()} {max_length} {probabilities}"
    return hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()


def fingerprint_rows(rows: Iterable[dict[str, Any]]) -> str:
    """What tells rows from others."""
    return hashlib.blake2b("".join(map(json_line, rows)).encode(), digest_size=8).hexdigest()


class ScoredFile(NamedTuple):
    """How the scoring of a file went.

    Attributes:
        kept: Number of rows that were there from a run before.
        errors: Why rows were not scored, a sentence each.
    """

    kept: int
    errors: list[str]


def score_to_file(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    output: Path,
    max_length: int | None = None,
    probabilities: bool = False,
    source: str = "",
) -> ScoredFile:
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
        probabilities: See `add_rewards`.
        source: See `add_rewards`.
    """
    state, encoder = process_state(), encoder_of(model, tokenizer, max_length)
    folder = output.with_name(f"{output.name}.{run_fingerprint(model, max_length, probabilities)}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    state.wait_for_everyone()  # until all have looked
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
        with replacing_file(output) as temporary, temporary.open("wb") as file:
            for part in parts:
                with part.open("rb") as lines:
                    for line in lines:
                        file.write(line)
                        errors += row_errors(line)
        shutil.rmtree(folder)
    return ScoredFile(kept, errors)


def row_errors(line: bytes) -> list[str]:
    """Why a row, given as its line of JSON, was not scored; nothing where it was."""
    error = json.loads(line).get(ROW_ERROR) if ROW_ERROR.encode() in line else None
    return [error] if error else []


def json_line(row: dict[str, Any]) -> str:
    """A row as a line of JSON; dates and the like become text."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only JSON's own escapes can write
        line = json.dumps(row, default=str)
    return line + "\n"
