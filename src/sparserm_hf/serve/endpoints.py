"""The answers: OpenRLHF's remote rewards, verl's and vLLM's `/classify`, and rows as `sparserm score` takes them."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from ..errors import SparseRMError
from ..explain.rows import as_json, explain_rows
from ..integrations.reward_function import group_contributions
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..preferences.templates import Text
from ..preferences.texts import texts_of_row
from ..scoring import Scores, text_limit, token_ids
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
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_length = text_limit(model, tokenizer, max_length)
        self.batcher, self.metrics = batcher, metrics
        # One thread and a tokenizer for it alone: a tokenizer refuses two threads at once, and thousands of texts
        # would keep the event loop, and with it `/health`, from answering.
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._explaining_tokenizer = copy.deepcopy(tokenizer)

    async def _score(self, texts: list[Text]) -> Scores:
        def tokenize() -> list[list[int]]:
            return [token_ids(self.tokenizer, text, self.max_length, i) for i, text in enumerate(texts, 1)]

        try:
            ids = await asyncio.get_running_loop().run_in_executor(self._tokenizing, tokenize)
            scores = await self.batcher.submit(ids)
        except SparseRMError as error:
            raise HTTPException(422, str(error)) from error
        except QueueFullError:
            raise self._full() from None
        self.metrics.texts.inc(len(ids))
        self.metrics.tokens.inc(sum(map(len, ids)))
        return scores

    def _full(self) -> HTTPException:
        return HTTPException(429, f"{self.batcher.waiting} texts wait already: try again later.", {"Retry-After": "1"})

    async def get_reward(self, body: GetReward) -> dict[str, Any]:
        """`POST /get_reward`; with a linear head, `extra_logs` tells what groups of features add to each reward."""
        scores = await self._score(list(body.query))
        rewards = scores.rewards.tolist()
        groups = group_contributions(self.model, scores.features)
        logs = {name: values.tolist() for name, values in groups.items()}
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    async def classify(self, body: Classify) -> dict[str, Any]:
        """`POST /classify`: the raw reward where vLLM puts a probability, as it does for reward models."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise HTTPException(422, f"input: {len(texts)} texts were given, but a request has 1 to {MAX_TEXTS}.")
        rewards = (await self._score(list(texts))).rewards.tolist()
        data = [
            {"index": i, "label": "reward", "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)
        ]
        return {"object": "list", "model": self.name, "data": data}

    async def score(self, body: Score) -> dict[str, Any]:
        """`POST /score`: the rows with their rewards added."""
        try:
            texts = [texts_of_row(row, number) for number, row in enumerate(body.rows, 1)]
        except SparseRMError as error:
            raise HTTPException(422, f"rows: {error}") from error
        scores = await self._score([text for named in texts for text in named.values()])
        rewards = iter(scores.rewards.tolist())
        pairs = zip(body.rows, texts, strict=True)
        return {"rows": [row | {key: next(rewards) for key in named} for row, named in pairs]}

    async def explain(self, body: Explain) -> dict[str, Any]:
        """`POST /explain`: the rows with their rewards and what made them."""

        def compute() -> list[dict[str, Any]]:
            explained = explain_rows(self.model, self._explaining_tokenizer, body.rows, self.max_length)
            return [as_json(row, texts, body.top) for row, texts in explained]

        if self.model.config.head_type != "linear" and find_spec("captum") is None:
            raise HTTPException(501, "This server cannot explain an MLP head: captum is not installed there.")
        try:
            texts = sum(len(texts_of_row(row, number)) for number, row in enumerate(body.rows, 1))
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
