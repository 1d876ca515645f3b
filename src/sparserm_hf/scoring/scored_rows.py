"""Score texts and pairs with a reward model: streaming, in the order of the input, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from scipy.special import expit
from transformers import PreTrainedTokenizerBase

from ..conversations import ChatEncoder, TokenizedText, check_row, row_name, texts_of_row
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError
from .reward_models import encoder_of
from .scored_texts import check_rewards, score_texts

PROBABILITY = "chosen_probability"  # what `probabilities` adds to a pair
ROW_ERROR = "reward_error"  # what a row gets that cannot be scored
ADDED = ("reward", "chosen_reward", "rejected_reward", PROBABILITY, ROW_ERROR)
CHUNK_ROWS = 512  # rows that are sorted by length and written together


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


def score_rows(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    max_length: int | None = None,
    probabilities: bool = False,
    source: str = "",
) -> Iterator[dict[str, Any]]:
    """Score rows one chunk at a time, and yield them in order with their rewards added.

    A row with one text gets `reward`; a pair gets `chosen_reward` and `rejected_reward`. A row that cannot be scored
    gets `reward_error` instead: a sentence that says why.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows with `text`, `messages`, `prompt` and `completion`, or `chosen` and `rejected`.
        max_length: Length limit of a text in tokens. A longer text loses its start. The default is the limit of
            training.
        probabilities: Also add `chosen_probability` to pairs: how likely it is that `chosen` is preferred.
        source: Name of the file that the rows come from, for errors.

    Yields:
        The rows with their rewards.

    Example:
        ```python
        from sparserm_hf import load_reward_model, score_rows

        rows = [{"prompt": "Is the earth flat?", "chosen": "No, it is round.", "rejected": "Yes."}]
        for row in score_rows(*load_reward_model("my-reward-model"), rows, probabilities=True):
            print(row["chosen_reward"], row["rejected_reward"], row["chosen_probability"])
        ```
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
