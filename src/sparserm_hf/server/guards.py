"""Guards before the endpoints: they check host, token and body, watch for departed clients, and count answers."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def refusal(code: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Make an error answer in the form of the server: `{"error": "<one sentence>"}`."""
    text = sentence.encode(errors="backslashreplace").decode()  # a name may hold half of a surrogate pair
    return JSONResponse({"error": text}, code, headers)


def is_loopback(host: str) -> bool:
    """Tell if a Host header names this machine.

    Example:
        >>> [is_loopback(host) for host in ("localhost:8000", "[::1]:8000", "127.0.0.1", "example.com:8000")]
        [True, True, True, False]
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI middleware that passes everything but HTTP requests on unchanged."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard a request."""
        await (self.guard if scope["type"] == "http" else self.app)(scope, receive, send)

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request, or pass it on."""
        raise NotImplementedError


class CheckHost(Guard):
    """Answer 421 to requests that name another host than this machine.

    A web page can point its own name at 127.0.0.1 and then read a server without a token (DNS rebinding). The Host
    header of its requests still holds the page's name.
    """

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its Host header names a loopback address."""
        if is_loopback(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        sentence = "Without a token this server answers only requests whose Host is localhost or a loopback address."
        await refusal(421, sentence)(scope, receive, send)


class RequireToken(Guard):
    """Answer 401 to requests without the bearer token, before anything of their body is read."""

    def __init__(self, app: ASGIApp, token: str, free: tuple[str, ...]):
        super().__init__(app)
        self.wanted, self.free = f"Bearer {token}".encode(), free

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it carries the token, or if its path needs no token."""
        given = Headers(scope=scope).get("authorization", "")
        if scope["path"] in self.free or secrets.compare_digest(given.encode(), self.wanted):
            await self.app(scope, receive, send)
            return
        answer = refusal(401, "The bearer token is missing or wrong.", {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)


class BodyTooLargeError(Exception):
    """A body is larger than the limit."""


class ReceiveBody(Guard):
    """Receive the body within limits of size and time, and drop a request whose client leaves before the answer.

    Args:
        app: The application that is guarded.
        limit: Maximum size of a body in bytes; a larger body is answered 413.
        seconds: Maximum time in seconds for a body to arrive; a slower body is answered 408.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float):
        super().__init__(app)
        self.limit, self.seconds = limit, seconds

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose body has arrived."""
        try:
            body = await asyncio.wait_for(self._body(scope, receive), self.seconds)
        except ClientDisconnect:
            return
        except BodyTooLargeError:
            sentence = f"The body is larger than {self.limit} bytes: send fewer texts at once."
            await refusal(413, sentence)(scope, receive, send)
            return
        except asyncio.TimeoutError:
            sentence = f"The body did not arrive within {self.seconds:g} seconds: send fewer texts at once."
            await refusal(408, sentence, {"Connection": "close"})(scope, receive, send)
            return
        await self._answer(body, scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Receive the body; a request whose stated length is too large is refused before it is received."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.limit:
            raise BodyTooLargeError
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                raise BodyTooLargeError
        return bytes(body)

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer while watching the client; cancel the answer if the client leaves before it starts."""
        parts: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])
        started = False

        async def watch() -> Message:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message

        async def replay() -> Message:
            for part in parts:
                return part
            return await asyncio.shield(watching)

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        watching = asyncio.ensure_future(watch())
        answering = asyncio.ensure_future(self.app(scope, replay, sending))
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if started:
                await answering
        finally:
            watching.cancel()
            answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering


class CountAnswers(Guard):
    """Count answers by path and code, and the seconds until they start.

    Args:
        app: The application that is guarded.
        paths: Paths to count by name; all others count as `other`.
        answered: The counter.
        seconds: The histogram.
    """

    def __init__(self, app: ASGIApp, paths: set[str], answered: Counter, seconds: Histogram):
        super().__init__(app)
        self.paths, self.answered, self.seconds = paths, answered, seconds

    async def guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the answer to a request; a request whose client has left gets no answer."""
        path = scope["path"] if scope["path"] in self.paths else "other"
        started = time.perf_counter()

        def count(code: int) -> None:
            self.answered.labels(path, code).inc()
            self.seconds.labels(path).observe(time.perf_counter() - started)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counting)
        except Exception:
            count(500)  # Starlette answers this exception outside of every middleware
            raise
