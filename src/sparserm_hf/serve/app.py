"""The HTTP interface: OpenRLHF's remote rewards, verl's and vLLM's `/classify`, and rows as `score` takes them."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import prometheus_client
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from transformers import PreTrainedTokenizerBase

from ..errors import SparseRMError, reason
from ..integrations.reward_function import group_contributions
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..preferences.templates import Text
from ..preferences.texts import texts_of_row
from ..representations import batch_tokens
from ..scoring import Scores, score_token_ids, token_ids
from .batching import Batcher, QueueFullError

MAX_TEXTS = 4096  # of one request
MAX_WAITING = 16_384  # texts in the queue
MAX_BODY = 32 * 2**20  # bytes of a request
BATCHES_AT_ONCE = 4  # full batches that are planned together, so that alike lengths meet
LOOPBACK = ("127.0.0.1", "::1", "localhost")


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


class LimitBody:
    """Answer 413 to requests whose body is too large, whatever they say of its length."""

    def __init__(self, app: Callable[..., Awaitable[None]], limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on with its body counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = bytearray(), True
        while more and len(body) <= self.limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > self.limit:
            too_large = {"error": f"The body is larger than {self.limit} bytes: send fewer texts at once."}
            await JSONResponse(too_large, 413)(scope, receive, send)
            return
        parts = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay() -> dict:
            return next(parts, None) or await receive()

        await self.app(scope, replay, send)


def create_app(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    token: str | None = None,
    max_length: int | None = None,
    max_waiting: int = MAX_WAITING,
    max_body: int = MAX_BODY,
) -> FastAPI:
    """The server of a reward model.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        name: What it is called in answers.
        token: Bearer token that every request but `/health` must carry.
        max_length: Longer texts lose their start; by default as long as in training.
        max_waiting: Texts that may wait; requests beyond are answered 429.
        max_body: Bytes of a request; larger ones are answered 413.
    """
    at_once = BATCHES_AT_ONCE * batch_tokens(model.directions.device)
    batcher = Batcher(lambda texts: score_token_ids(model, texts), max_waiting, at_once)
    registry = prometheus_client.CollectorRegistry()
    answered = prometheus_client.Counter("sparserm_requests", "Requests answered", ["path", "code"], registry=registry)
    scored = prometheus_client.Counter("sparserm_texts", "Texts scored", registry=registry)
    tokens = prometheus_client.Counter("sparserm_tokens", "Tokens scored", registry=registry)
    seconds = prometheus_client.Histogram("sparserm_seconds", "Seconds to an answer", ["path"], registry=registry)
    waiting = prometheus_client.Gauge("sparserm_waiting_texts", "Texts that wait", registry=registry)
    waiting.set_function(lambda: batcher.waiting)
    weight = model.score.weight[0].detach().double().cpu().numpy() if model.config.head_type == "linear" else None
    mean = model.feature_mean.double().cpu().numpy()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()  # uvicorn has waited for all answers
        with suppress(asyncio.CancelledError):
            await worker

    async def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "The bearer token is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    async def score(texts: list[Text]) -> Scores:
        try:
            ids = [token_ids(tokenizer, text, max_length, number) for number, text in enumerate(texts, 1)]
            scores = await batcher.submit(ids)
        except SparseRMError as error:
            raise HTTPException(422, str(error)) from error
        except QueueFullError:
            raise HTTPException(
                429, f"{batcher.waiting} texts wait already: try again later.", {"Retry-After": "1"}
            ) from None
        scored.inc(len(ids))
        tokens.inc(sum(map(len, ids)))
        return scores

    app = FastAPI(title=f"SparseRM: {name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(LimitBody, limit=max_body)
    guarded = [Depends(check_token)]

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path if request.url.path in PATHS else "other"
        with seconds.labels(path).time():
            response = await call_next(request)
        answered.labels(path, response.status_code).inc()
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return JSONResponse({"error": f"{field}: {first['msg']}."}, 422)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.post("/get_reward", dependencies=guarded)
    async def get_reward(body: GetReward) -> dict[str, Any]:
        scores = await score(list(body.query))
        groups = {}
        if weight is not None:
            groups = group_contributions(model.config, weight, mean, scores.features)
        rewards = scores.rewards.tolist()
        return {
            "rewards": rewards,
            "scores": rewards,
            "extra_logs": {group: values.tolist() for group, values in groups.items()},
        }

    @app.post("/classify", dependencies=guarded)
    async def classify(body: Classify) -> dict[str, Any]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise HTTPException(422, f"input: {len(texts)} texts were given, but a request has 1 to {MAX_TEXTS}.")
        rewards = (await score(list(texts))).rewards.tolist()
        data = [
            {"index": i, "label": "reward", "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)
        ]
        return {"object": "list", "model": name, "data": data}

    @app.post("/score", dependencies=guarded)
    async def score_rows(body: Score) -> dict[str, Any]:
        try:
            texts = [texts_of_row(row, number) for number, row in enumerate(body.rows, 1)]
        except SparseRMError as error:
            raise HTTPException(422, f"rows: {error}") from error
        rewards = iter((await score([text for named in texts for text in named.values()])).rewards.tolist())
        pairs = zip(body.rows, texts, strict=True)
        return {"rows": [row | {key: next(rewards) for key in named} for row, named in pairs]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": name}

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return Response(prometheus_client.generate_latest(registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    PATHS = {route.path for route in app.routes if hasattr(route, "path")}
    return app


def check_host(host: str, token: str | None) -> None:
    """Raise a `SparseRMError` if a server there would be open to others without a token."""
    if host not in LOOPBACK and not token:
        raise SparseRMError(
            f"Serving on {host} lets others in: set a bearer token in the environment variable SPARSERM_TOKEN, or "
            "serve on 127.0.0.1."
        )


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run a server until it is told to stop; what it has accepted by then it still answers.

    Raises:
        SparseRMError: The port is taken.
    """
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise SparseRMError(f"Nothing can be served on {host}, port {port}: {reason(error)}.") from error
    print(f"Serving {app.title} on http://{host}:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])
