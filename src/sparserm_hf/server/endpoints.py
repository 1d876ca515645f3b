"""The endpoints in the forms of OpenRLHF, vLLM and SGLang, `/score` and `/explain` for rows, and `/metrics`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..conversations import ChatEncoder, TokenizedText, check_fields, list_names, row_name, texts_of_row
from ..explanations import explain_row, group_contributions
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError
from ..scoring import ADDED, Scores, check_rewards, further_fields, further_scores
from .batching import Batcher, QueueFullError
from .forms import (
    Classification,
    Classified,
    Classify,
    Embed,
    Embedding,
    Embeddings,
    Explain,
    GetReward,
    Health,
    Rewards,
    Row,
    Rows,
    Score,
)
from .tokenizing import NamedRow, Tokenizing


def check_json(row: Mapping[str, Any], where: str) -> None:
    """Raise a `SparseRMError` unless each field of a row can be sent back as JSON."""
    for name, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise SparseRMError(
                f"{where}, `{list_names([name])}` holds NaN or infinity, which are no JSON: leave that field out."
            ) from None


def encode_row(encoder: ChatEncoder, where: str, row: Mapping[str, Any]) -> dict[str, TokenizedText]:
    """Encode the texts of a row, and return each under the name of its reward.

    Raises:
        SparseRMError: The row has no text, or cannot be sent back as JSON.
    """
    check_json(check_fields(row, where), where)
    return {name: encoder(text, where) for name, text in texts_of_row(row, where).items()}


def named_rows(rows: list[Row]) -> list[NamedRow]:
    """Name each row for errors."""
    return [(row_name(number), row) for number, row in enumerate(rows, 1)]


def named_texts(texts: list[str]) -> list[NamedRow]:
    """Turn each string into a row with a text, and name it for errors."""
    return [(f"Text {number}", {"text": text}) for number, text in enumerate(texts, 1)]


class Metrics:
    """Counters and times that `/metrics` shows."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        self.answered = Counter("sparserm_requests", "Requests answered", ["path", "code"], registry=self.registry)
        self.texts = Counter("sparserm_texts", "Texts scored", registry=self.registry)
        self.tokens = Counter("sparserm_tokens", "Tokens scored", registry=self.registry)
        self.seconds = Histogram("sparserm_seconds", "Seconds to an answer", ["path"], registry=self.registry)
        waiting = Gauge("sparserm_waiting_texts", "Texts that wait", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting)


class Endpoints:
    """The endpoints of a reward model.

    Args:
        model: The reward model.
        name: The model's name in answers.
        tokenizing: Turns rows into token ids.
        batcher: Scores token ids.
        metrics: Counts texts and tokens that are scored.
    """

    def __init__(
        self,
        model: SparseRMForSequenceClassification,
        name: str,
        tokenizing: Tokenizing,
        batcher: Batcher,
        metrics: Metrics,
    ):
        self.model, self.name = model, name
        self.tokenizing, self.batcher, self.metrics = tokenizing, batcher, metrics
        self._explaining_encoder = copy.deepcopy(tokenizing.encoder)  # for the thread that scores

    async def _score(self, rows: list[NamedRow], field: str = "") -> tuple[list[list[str]], Scores]:
        """Score rows; returns the names of each row's rewards, and the scores of all texts in order.

        Args:
            rows: The rows.
            field: Text that an error begins with.
        """
        try:
            encoded = await self.tokenizing.map(encode_row, rows)
            texts = [text for row in encoded for text in row.values()]
            scores = await self.batcher.submit(texts)
            names = [where for (where, _), row in zip(rows, encoded, strict=True) for _ in row]
            for where, reward in zip(names, scores.rewards.tolist(), strict=True):
                check_rewards([reward], where)
        except SparseRMError as error:
            raise HTTPException(422, f"{field}{error}") from error
        except QueueFullError:
            raise self._full() from None
        self.metrics.texts.inc(len(texts))
        self.metrics.tokens.inc(sum(len(text.ids) for text in texts))
        return [list(row) for row in encoded], scores

    def _full(self) -> HTTPException:
        return HTTPException(429, f"{self.batcher.waiting} texts wait already: try again later.", {"Retry-After": "1"})

    async def get_reward(self, body: GetReward) -> Rewards:
        """Return rewards in the form of OpenRLHF's remote reward model."""
        _, scores = await self._score(named_texts(body.query))
        rewards = scores.rewards.tolist()
        groups = group_contributions(self.model, scores)
        logs = {name: values.tolist() for name, values in groups.items()}
        return Rewards(rewards=rewards, scores=rewards, extra_logs=logs)

    async def classify(self, body: Classify) -> Classification:
        """Return raw rewards in place of probabilities, as vLLM does for reward models."""
        rows = named_texts(body.input or []) or [("The conversation", {"messages": body.messages})]
        _, scores = await self._score(rows)
        data = [Classified(index=i, probs=[reward]) for i, reward in enumerate(scores.rewards.tolist())]
        return Classification(model=self.name, data=data)

    async def embed(self, body: Embed) -> Embeddings:
        """Return each reward as an embedding of one number, as SGLang does for reward models."""
        _, scores = await self._score(named_texts(body.input))
        data = [Embedding(index=i, embedding=[reward]) for i, reward in enumerate(scores.rewards.tolist())]
        return Embeddings(model=self.name, data=data)

    async def score(self, body: Score) -> Rows:
        """Return the rows with their rewards."""
        names, scores = await self._score(named_rows(body.rows), "rows: ")
        further = further_scores(self.model, scores.features)
        scored = iter(zip(scores.rewards.tolist(), further, strict=True))
        kept = [{name: value for name, value in row.items() if name not in ADDED} for row in body.rows]
        rows = []
        for row, of_row in zip(kept, names, strict=True):
            found = {name: next(scored) for name in of_row}
            fields = further_fields({name: of for name, (_, of) in found.items()})
            rows.append(row | {name: reward for name, (reward, _) in found.items()} | fields)
        return Rows(rows=rows)

    async def explain(self, body: Explain) -> Rows:
        """Return the rows with their rewards and explanations."""

        def compute(number: int, row: Row) -> Row:
            return explain_row(self.model, self._explaining_encoder, row, row_name(number)).as_json(body.top)

        if self.model.config.head_type != "linear" and find_spec("captum") is None:
            raise HTTPException(501, "This server cannot explain an MLP head: captum is not installed there.")
        try:
            encoded = await self.tokenizing.map(encode_row, named_rows(body.rows))  # the checks of /score
            texts = sum(map(len, encoded))
            computations = [partial(compute, number, row) for number, row in enumerate(body.rows, 1)]
            explained = await self.batcher.alone(computations, texts)
        except SparseRMError as error:
            raise HTTPException(422, f"rows: {error}") from error
        except QueueFullError:
            raise self._full() from None
        self.metrics.texts.inc(texts)
        return Rows(rows=explained)

    async def health(self) -> Health:
        """Tell that the server answers."""
        return Health(model=self.name)
