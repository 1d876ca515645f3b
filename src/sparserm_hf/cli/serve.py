"""`sparserm serve`: score over HTTP."""

from __future__ import annotations

import argparse
import os

from .arguments import add_scoring_model

EXAMPLE = "sparserm serve my-reward-model --port 8000"
NEXT = ""  # it runs until it is stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sparserm serve`."""
    add_scoring_model(parser)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address to listen on; any other than this machine's own needs a token in SPARSERM_TOKEN "
        "(default: %(default)s).",
    )
    server.add_argument("--port", type=int, default=8000, help="Port; 0 takes a free port (default: %(default)s).")
    server.add_argument(
        "--exact",
        action="store_true",
        help="Score each text alone: then other callers do not change its reward, not even the last bit.",
    )


def run(args: argparse.Namespace) -> None:
    """Serve until a signal ends the server."""
    from ..server import serve

    token = os.environ.get("SPARSERM_TOKEN")
    serve(args.model, args.host, args.port, token, args.max_length, args.dtype, args.revision, args.exact)
