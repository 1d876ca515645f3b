"""The HTTP application: the endpoints, their guards, and one form for every error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from transformers import PreTrainedTokenizerBase

from ..conversations import TokenizedText
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import batch_tokens, reason
from ..scoring import Scores, encoder_of, score_texts
from .batching import Batcher
from .endpoints import Endpoints, Metrics
from .forms import Refusal
from .guards import CheckHost, CountAnswers, ReceiveBody, RequireToken, refusal
from .limits import BODY_SECONDS, MAX_BODY, MAX_CHARACTERS, MAX_WAITING
from .tokenizing import Tokenizing

BATCHES_AT_ONCE = 8  # full batches that are planned together, so that texts of similar lengths share a batch

REFUSALS = {
    401: "The bearer token is missing or wrong.",
    421: "The Host header names another machine, and the server has no token.",
    408: "The body arrived too slowly.",
    413: "The body is too large.",
    422: "Something in the body is wrong.",
    429: "Too many texts wait already.",
    500: "The server failed.",
    501: "The server lacks a package.",
}


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error answers of an endpoint for its OpenAPI."""
    return {code: {"model": Refusal, "description": REFUSALS[code]} for code in codes}


async def invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer a body that FastAPI rejects with one sentence that begins with the field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return refusal(422, f"{field}: {first['msg'].removeprefix('Value error, ')}.")


async def refused(request: Request, error: Exception) -> JSONResponse:
    """Answer every other error of a request in the same form."""
    assert isinstance(error, StarletteHTTPException)
    path, code, sentence = request.url.path, error.status_code, error.detail
    if code == 400:  # FastAPI's status for JSON that Python cannot read
        code, sentence = 422, "body: It cannot be read as JSON."
    elif code == 404:
        sentence = f"There is no {path} here (Not Found): /openapi.json lists the endpoints."
    elif code == 405:
        sentence = f"{path} does not take {request.method}: /openapi.json lists the endpoints."
    return refusal(code, sentence, error.headers)


async def failed(_: Request, error: Exception) -> JSONResponse:
    """Answer a failure of the server in the same form; the traceback goes to the server's log."""
    return refusal(500, f"The server failed on this request: {reason(error).rstrip('.')}.")


def answer_errors(app: FastAPI) -> None:
    """Make an application answer every error with one sentence, in one form."""
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, refused)
    app.add_exception_handler(Exception, failed)


def _make_scorer(model: SparseRMForSequenceClassification, exact: bool) -> Callable[[list[TokenizedText]], Scores]:
    def score(texts: list[TokenizedText]) -> Scores:
        if not exact:
            return score_texts(model, texts)
        alone = [score_texts(model, [text]) for text in texts]
        return Scores(*map(np.concatenate, zip(*alone, strict=True)))

    return score


def _lifespan(batcher: Batcher) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def run_batcher(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()  # uvicorn has waited for all answers
        with suppress(asyncio.CancelledError):
            await worker

    return run_batcher


def _add_endpoints(app: FastAPI, endpoints: Endpoints, token: str | None) -> None:
    """Add the endpoints, each with the error answers that its OpenAPI lists."""

    async def show_metrics() -> Response:
        """Return the counts and times of the server's answers in the format of Prometheus."""
        return Response(generate_latest(endpoints.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    entrance = 401 if token else 421
    errors = refusals(entrance, 408, 413, 422, 429, 500)
    for endpoint in (endpoints.get_reward, endpoints.classify, endpoints.score):
        app.post(f"/{endpoint.__name__}", responses=errors)(endpoint)
    app.post("/v1/embeddings", responses=errors)(endpoints.embed)
    app.post("/explain", responses=errors | refusals(501))(endpoints.explain)
    errors = refusals(entrance, 408, 413, 500)
    app.get("/metrics", responses=errors, response_class=PlainTextResponse)(show_metrics)
    app.get("/health", responses=refusals(*([] if token else [421]), 408, 413, 500))(endpoints.health)
    answer_errors(app)


def _add_guards(app: FastAPI, metrics: Metrics, token: str | None, max_body: int, body_seconds: float) -> None:
    """Add the guards. Starlette runs the guard that is added last first."""
    paths = {"/get_reward", "/classify", "/v1/embeddings", "/score", "/explain"}
    paths |= {"/metrics", "/health", "/openapi.json"}
    app.add_middleware(ReceiveBody, limit=max_body, seconds=body_seconds)
    if token:
        app.add_middleware(RequireToken, token=token, free=("/health",))
    else:
        app.add_middleware(CheckHost)
    app.add_middleware(CountAnswers, paths=paths, answered=metrics.answered, seconds=metrics.seconds)


def create_app(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    token: str | None = None,
    max_length: int | None = None,
    max_waiting: int = MAX_WAITING,
    max_body: int = MAX_BODY,
    max_characters: int = MAX_CHARACTERS,
    body_seconds: float = BODY_SECONDS,
    exact: bool = False,
) -> FastAPI:
    """Create the application that serves a reward model, to mount it in a server of your own.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        name: The model's name in answers.
        token: Bearer token that every request but `/health` must carry. Without a token, the Host header of a request
            must name this machine.
        max_length: Maximum number of tokens of a text; a longer text loses its start. Default: as in training.
        max_waiting: Maximum number of texts in the queue; requests beyond it are answered 429.
        max_body: Maximum size of a request in bytes; a larger one is answered 413.
        max_characters: Maximum number of characters of a row or text; a longer one is answered 422.
        body_seconds: Maximum time in seconds for a body to arrive; a slower one is answered 408.
        exact: Score each text alone, so that other requests do not change a bit of its reward.

    Returns:
        The application. Its lifespan must run: it starts the queue.
    """
    share = 1 if exact else batch_tokens(model.directions.device)  # tokens of a request at a time
    max_tokens = 1 if exact else BATCHES_AT_ONCE * share
    batcher = Batcher(_make_scorer(model, exact), max_waiting, max_tokens, share)
    metrics = Metrics(batcher)
    tokenizing = Tokenizing(encoder_of(model, tokenizer, max_length), max_characters)
    app = FastAPI(title=f"SparseRM: {name}", lifespan=_lifespan(batcher), docs_url=None, redoc_url=None)
    _add_endpoints(app, Endpoints(model, name, tokenizing, batcher, metrics), token)
    _add_guards(app, metrics, token, max_body, body_seconds)
    return app
