"""The answers: OpenRLHF's remote rewards, verl's and vLLM's `/classify`, and rows as `sparserm score` takes them."""

from __future__ import annotations

import asyncio
import copy
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from ..conversations.encoding import TokenizedText
from ..conversations.messages import Text, check_fields, named, row_name
from ..conversations.rows import texts_of_row
from ..errors import SparseRMError
from ..explain.rows import as_json, explain_rows
from ..integrations.reward_function import group_contributions
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..scoring import ADDED, Scores, encoder_of
from .batching import Batcher, QueueFullError

MAX_TEXTS = 4096  # of one request
MAX_EXPLAINED = 16  # rows


class GetReward(BaseModel):
    """OpenRLHF's request: whole texts, prompt and response, as strings."""

    query: list[str] = Field(min_length=1, max_length=MAX_TEXTS)
    prompts: list[str] | None = None
    labels: list[Any] | None = None


class Classify(BaseModel):
    """vLLM's request, as verl's reward loop sends it."""

    input: str | list[str]
    model: str | None = None


class Score(BaseModel):
    """Rows as `sparserm score` takes them."""

    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_TEXTS)


class Explain(BaseModel):
    """Rows as `sparserm explain` takes them, and how many latents to name."""

    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_EXPLAINED)
    top: int = Field(default=10, ge=1)


def check_json(row: dict[str, Any], where: str) -> None:
    """Raise a `SparseRMError` unless each field of a row can be sent back as JSON."""
    for name, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise SparseRMError(
                f"{where}, `{named([name])}` holds NaN or infinity, which are no JSON: leave that field out."
            ) from None


class Metrics:
    """What `/metrics` shows."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        self.answered = Counter("sparserm_requests", "Requests answered", ["path", "code"], registry=self.registry)
        self.texts = Counter("sparserm_texts", "Texts scored", registry=self.registry)
        self.tokens = Counter("sparserm_tokens", "Tokens scored", registry=self.registry)
        self.seconds = Histogram("sparserm_seconds", "Seconds to an answer", ["path"], registry=self.registry)
        waiting = Gauge("sparserm_waiting_texts", "Texts that wait", registry=self.registry)
        waiting.set_function(lambda: batcher.waiting)


class Endpoints:
    """The answers of one reward model.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        name: What it is called in answers.
        max_length: Longer texts lose their start; by default as long as in training.
        batcher: Scores token ids.
        metrics: Are told what was scored.
    """

    def __init__(
        self,
        model: SparseRMForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        max_length: int | None,
        batcher: Batcher,
        metrics: Metrics,
    ):
        self.model, self.name = model, name
        self.batcher, self.metrics = batcher, metrics
        # One thread and a tokenizer for it alone: a tokenizer refuses two threads at once, and thousands of texts
        # would keep the event loop, and with it `/health`, from answering.
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._encoder = encoder_of(model, tokenizer, max_length)
        self._explaining_encoder = encoder_of(model, copy.deepcopy(tokenizer), max_length)

    async def _score(self, texts: list[tuple[str, Text]]) -> Scores:
        """Scores of texts, each given with what errors call it."""

        def tokenize() -> list[TokenizedText]:
            return [self._encoder(text, where) for where, text in texts]

        try:
            ids = await asyncio.get_running_loop().run_in_executor(self._tokenizing, tokenize)
            scores = await self.batcher.submit(ids)
        except SparseRMError as error:
            raise HTTPException(422, str(error)) from error
        except QueueFullError:
            raise self._full() from None
        self.metrics.texts.inc(len(ids))
        self.metrics.tokens.inc(sum(len(text.ids) for text in ids))
        return scores

    def _full(self) -> HTTPException:
        return HTTPException(429, f"{self.batcher.waiting} texts wait already: try again later.", {"Retry-After": "1"})

    async def get_reward(self, body: GetReward) -> dict[str, Any]:
        """`POST /get_reward`; with a linear head, `extra_logs` tells what groups of features add to each reward."""
        scores = await self._score([(f"Text {i}", text) for i, text in enumerate(body.query, 1)])
        rewards = scores.rewards.tolist()
        groups = group_contributions(self.model, scores.features)
        logs = {name: values.tolist() for name, values in groups.items()}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    async def classify(self, body: Classify) -> dict[str, Any]:
        """`POST /classify`: the raw reward where vLLM puts a probability, as it does for reward models."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise HTTPException(422, f"input: {len(texts)} texts were given, but a request has 1 to {MAX_TEXTS}.")
        rewards = (await self._score([(f"Text {i}", text) for i, text in enumerate(texts, 1)])).rewards.tolist()
        data = [
            {"index": i, "label": "reward", "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)
        ]
        return {"object": "list", "model": self.name, "data": data}

    async def score(self, body: Score) -> dict[str, Any]:
        """`POST /score`: the rows with their rewards added."""
        texts = self._read(body.rows)
        scores = await self._score(
            [(row_name(i), text) for i, texts_of in enumerate(texts, 1) for text in texts_of.values()]
        )
        rewards = iter(scores.rewards.tolist())
        kept = [{name: value for name, value in row.items() if name not in ADDED} for row in body.rows]
        pairs = zip(kept, texts, strict=True)
        return {"rows": [row | {name: next(rewards) for name in texts_of} for row, texts_of in pairs]}

    def _read(self, rows: list[dict[str, Any]]) -> list[dict[str, Text]]:
        """The texts of each row, in rows that can be sent back."""
        try:
            for number, row in enumerate(rows, 1):
                check_json(check_fields(row, row_name(number)), row_name(number))
            return [texts_of_row(row, row_name(number)) for number, row in enumerate(rows, 1)]
        except SparseRMError as error:
            raise HTTPException(422, f"rows: {error}") from error

    async def explain(self, body: Explain) -> dict[str, Any]:
        """`POST /explain`: the rows with their rewards and what made them."""

        def compute() -> list[dict[str, Any]]:
            explained = explain_rows(self.model, self._explaining_encoder, body.rows)
            return [as_json(row, texts, body.top) for row, texts in explained]

        if self.model.config.head_type != "linear" and find_spec("captum") is None:
            raise HTTPException(501, "This server cannot explain an MLP head: captum is not installed there.")
        texts = sum(map(len, self._read(body.rows)))
        try:
            explained = await self.batcher.alone(compute, texts)
        except SparseRMError as error:
            raise HTTPException(422, f"rows: {error}") from error
        except QueueFullError:
            raise self._full() from None
        self.metrics.texts.inc(texts)
        return {"rows": explained}

    async def health(self) -> dict[str, str]:
        """`GET /health`."""
        return {"status": "ok", "model": self.name}
