"""The server's socket, its start and its stop."""

from __future__ import annotations

import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from ..runtime import SparseRMError, reason, say
from .guards import LOOPBACK

KEEP_ALIVE = 75  # seconds; if shorter than a client's, the server closes connections while a request is being sent
GRACE = 60  # seconds after a stop in which accepted requests are still answered
BACKLOG = 2048  # connections that wait to be accepted


def check_host(host: str, token: str | None) -> None:
    """Raise a `SparseRMError` if other machines could reach the server and there is no token."""
    if host not in LOOPBACK and not token:
        raise SparseRMError(
            f"Serving on {host} lets others in: set a bearer token in the environment variable SPARSERM_TOKEN, or "
            "serve on 127.0.0.1."
        )


def open_socket(host: str, port: int) -> socket.socket:
    """Open a socket that listens.

    Raises:
        SparseRMError: The port is taken or invalid.
    """
    # asyncio turns Nagle's algorithm off only where a socket names TCP: without it an answer over a kept connection
    # waits 40 ms for the client's acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise SparseRMError(
            f"Nothing can be served on {host}, port {port} ({reason(error)}): name another host or port."
        ) from error
    return listening


class Server(uvicorn.Server):
    """A server that prints its address when it takes requests.

    Args:
        app: The application.
        grace: Seconds after a stop in which accepted requests are still answered.
        end: End of the address, such as the token for a page.
    """

    def __init__(self, app: FastAPI, grace: int = GRACE, end: str = ""):
        # uvicorn must not set up logging: that closes all existing handlers, and some handlers close their stream.
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=grace,
        )
        super().__init__(config)
        self.title, self.end = app.title, end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the address."""
        await super().startup(sockets=sockets)
        for listening in sockets or []:
            host, port = listening.getsockname()[:2]
            say(f"Serving {self.title} on http://{f'[{host}]' if ':' in host else host}:{port}{self.end}")


def run_app(app: FastAPI, host: str, port: int, grace: int = GRACE, end: str = "") -> None:
    """Run a server until a signal stops it; see `Server`.

    Raises:
        SparseRMError: The port is taken or invalid.
    """
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal that stopped it once more
        Server(app, grace, end).run(sockets=[open_socket(host, port)])
