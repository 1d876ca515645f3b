"""`sparserm serve`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..runtime import without_extra
from .arguments import add_max_length, add_reward_model

EXAMPLE = "sparserm serve my-reward-model --port 8000"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("serve", help=summary, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address; any but this machine's own needs a token in SPARSERM_TOKEN"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free port")
    parser.add_argument(
        "--exact", action="store_true", help="score each text alone: the same reward to the bit whoever else calls"
    )
    add_max_length(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Serve a reward model until the process is stopped."""
    try:
        from ..server import serve
    except ModuleNotFoundError as error:
        raise without_extra("The server", error, "serve") from None
    token = os.environ.get("SPARSERM_TOKEN")
    serve(args.model, args.host, args.port, token, args.max_length, args.dtype, args.revision, args.exact)
