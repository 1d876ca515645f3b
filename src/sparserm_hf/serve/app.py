"""The HTTP server: limits, token, errors, and a clean start and stop around the endpoints."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from transformers import PreTrainedTokenizerBase

from ..errors import SparseRMError, reason
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import batch_tokens
from ..scoring import score_texts
from ..terminal import say
from .batching import Batcher
from .endpoints import Endpoints, Metrics

MAX_WAITING = 16_384  # texts in the queue
MAX_BODY = 32 * 2**20  # bytes of a request
BATCHES_AT_ONCE = 8  # full batches that are planned together, so that alike lengths meet
KEEP_ALIVE = 75  # seconds; shorter than a client's, a connection is closed under a request that is just being sent
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RequireToken:
    """Answer 401 to requests without the bearer token, before anything of their body is read."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: str, free: tuple[str, ...]):
        self.app, self.wanted, self.free = app, f"Bearer {token}".encode(), free

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Pass a request on if it carries the token, or asks for what is free."""
        if scope["type"] != "http" or scope["path"] in self.free:
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization", "")
        if secrets.compare_digest(given.encode(), self.wanted):
            await self.app(scope, receive, send)
            return
        answer = {"error": "The bearer token is missing or wrong."}
        await JSONResponse(answer, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


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


async def invalid(_: Request, error: Exception) -> JSONResponse:
    """What FastAPI finds wrong with a body, as one sentence that begins with the field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse({"error": f"{field}: {first['msg']}."}, 422)


async def refused(_: Request, error: Exception) -> JSONResponse:
    """Every other refusal, in the same form."""
    assert isinstance(error, StarletteHTTPException)
    unreadable = error.status_code == 400  # FastAPI's word for JSON that Python cannot read
    return JSONResponse({"error": error.detail}, 422 if unreadable else error.status_code, error.headers)


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
    batcher = Batcher(lambda texts: score_texts(model, texts), max_waiting, at_once)
    metrics = Metrics(batcher)
    endpoints = Endpoints(model, tokenizer, name, max_length, batcher, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()  # uvicorn has waited for all answers
        with suppress(asyncio.CancelledError):
            await worker

    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path if request.url.path in paths else "other"
        with metrics.seconds.labels(path).time():
            response = await call_next(request)
        metrics.answered.labels(path, response.status_code).inc()
        return response

    app = FastAPI(title=f"SparseRM: {name}", lifespan=lifespan, openapi_url=None)
    app.post("/get_reward")(endpoints.get_reward)
    app.post("/classify")(endpoints.classify)
    app.post("/score")(endpoints.score)
    app.post("/explain")(endpoints.explain)
    app.get("/metrics")(show_metrics)
    app.get("/health")(endpoints.health)
    paths = {"/get_reward", "/classify", "/score", "/explain", "/metrics", "/health"}
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, refused)
    app.add_middleware(LimitBody, limit=max_body)
    if token:
        app.add_middleware(RequireToken, token=token, free=("/health",))
    app.middleware("http")(count)
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
        SparseRMError: The port is taken, or is none.
    """
    # No logging set up by uvicorn: that closes every handler there is, and some take the stream with them.
    config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        raise SparseRMError(f"Nothing can be served on {host}, port {port}: {reason(error)}.") from error
    say(f"Serving {app.title} on http://{host}:{listening.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[listening])
