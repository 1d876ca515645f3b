"""`sparserm monitor`."""

from __future__ import annotations

import argparse
from typing import Any

from ..conversations import iterate_rows
from ..monitoring import ALARM, monitor
from .arguments import add_max_length, add_reward_model
from .explanation_tables import print_drift

EXAMPLE = "sparserm monitor my-reward-model policy-responses.jsonl"


def add_to(commands: Any, summary: str) -> None:
    """Add the command to those of `sparserm`."""
    parser = commands.add_parser("monitor", help=summary, example=EXAMPLE)
    add_reward_model(parser)
    parser.add_argument("input", help="a policy's responses: rows as `sparserm score` takes them; - for stdin")
    parser.add_argument(
        "--alarm",
        type=float,
        default=ALARM,
        help="largest share of features outside their training range, and of rewards that the dense twin "
        "contradicts; each is 1%% if nothing drifts",
    )
    parser.add_argument("--top", type=int, default=10, help="latents to show, those that moved most")
    add_max_length(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure the drift of responses; returns 1 where they are too far from the training responses."""
    drift = monitor(args.model, iterate_rows(args.input), args.input, args.max_length, args.dtype, args.revision)
    print_drift(drift, f"{args.input} against the training of {args.model}", args.alarm, args.top)
    return 1 if drift.alarms(args.alarm) else 0
