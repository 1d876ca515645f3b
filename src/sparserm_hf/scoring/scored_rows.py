"""Score a stream of rows, each a text or a pair, in chunks of rows that are computed together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scipy.special import expit
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..conversations import ChatEncoder, TokenizedText, check_row, row_name, texts_of_row
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError
from .reward_models import encoder_of
from .scored_texts import check_rewards, further_scores, score_texts

PROBABILITY = "chosen_probability"  # field of a pair
ROW_ERROR = "reward_error"  # field of a row that cannot be scored
REWARDS = ("reward", "chosen_reward", "rejected_reward")
FURTHER = ("by_objective", "deviation")  # see `further_scores`
ADDED = (*REWARDS, *(f"{reward}_{name}" for reward in REWARDS for name in FURTHER), PROBABILITY, ROW_ERROR)
CHUNK_ROWS = 512  # number of rows that are batched by length and written together


def chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into chunks of ``CHUNK_ROWS``.

    Batches stay within a chunk, so that its rewards have the same bits in every process and after every restart.
    """
    chunk: list[dict[str, Any]] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK_ROWS:
                yield chunk
                chunk = []
    except SparseRMError:  # a broken line: the rows before it must not be lost
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

    A row with one text gets `reward`; a pair gets `chosen_reward` and `rejected_reward`. A combined reward model also
    adds `reward_by_objective` and the like, an ensemble `reward_deviation`. A row that cannot be scored gets
    `reward_error` instead: a sentence that says why.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows with `text`, `messages`, `prompt` and `completion`, or `chosen` and `rejected`.
        max_length: Length limit of a text in tokens. A longer text loses its start. The default is the limit of
            training.
        probabilities: Also add `chosen_probability` to pairs: the probability that `chosen` is preferred.
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
    """Score rows as `score_rows` does, but with a given encoder.

    Args:
        model: The reward model.
        encoder: Its encoder; see `encoder_of`.
        rows: Rows as `score_rows` takes them.
        first_number: Number of the first row, for errors.
        probabilities: Also add `chosen_probability` to pairs.
        source: Name of the file that the rows come from, for errors.

    Yields:
        The rows with their rewards. Rewards of an earlier run are replaced.
    """
    temperature = model.config.reward_temperature if probabilities else None
    for chunk in chunks(rows):
        names = [row_name(number, source) for number, _ in enumerate(chunk, first_number)]
        encoded = [_encode_row(encoder, row, where) for row, where in zip(chunk, names, strict=True)]
        texts = [text for found in encoded if isinstance(found, dict) for text in found.values()]
        # Only in a terminal: a chunk of rows may take a minute on a CPU.
        with tqdm(total=len(texts), desc="Scoring", unit="text", delay=2, leave=False, disable=None) as bar:
            scores = score_texts(model, texts, bar.update)
        further = further_scores(model, scores.features)
        scored = iter(zip(scores.rewards.tolist(), further, strict=True))
        for row, found, where in zip(chunk, encoded, names, strict=True):
            kept = {name: value for name, value in row.items() if name not in ADDED}
            if isinstance(found, str):
                yield kept | {ROW_ERROR: found}
            else:
                of_row = {name: next(scored) for name in found}
                yield kept | _added(of_row, where, temperature)
        first_number += len(chunk)


def _encode_row(encoder: ChatEncoder, row: dict[str, Any], where: str) -> dict[str, TokenizedText] | str:
    """Encode the texts of a row by the names of their rewards; return a sentence if the row cannot be scored."""
    check_row(row, where)
    try:
        return {name: encoder(text, where) for name, text in texts_of_row(row, where).items()}
    except SparseRMError as error:
        return str(error)


def further_fields(further: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Make the fields of a row from the results of `further_scores` for its texts.

    Example:
        >>> further_fields({"chosen_reward": {"deviation": 0.5}, "rejected_reward": {"deviation": 0.25}})
        {'chosen_reward_deviation': 0.5, 'rejected_reward_deviation': 0.25}
    """
    return {f"{reward}_{name}": value for reward, of in further.items() for name, value in of.items()}


def _added(scored: dict[str, tuple[float, dict[str, Any]]], where: str, temperature: float | None) -> dict[str, Any]:
    """Return the fields to add to a row; with a temperature, a pair also gets its probability."""
    rewards = {name: reward for name, (reward, _) in scored.items()}
    try:
        check_rewards(rewards.values(), where)
    except SparseRMError as error:
        return {ROW_ERROR: str(error)}
    added = rewards | further_fields({name: further for name, (_, further) in scored.items()})
    if temperature is not None and len(rewards) == 2:
        chosen, rejected = rewards.values()
        added[PROBABILITY] = float(expit((chosen - rejected) / temperature))
    return added
