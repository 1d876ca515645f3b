"""`sparserm serve` as it is, with `--exact`, and as it was at an earlier commit, side by side on one machine.

    python benchmarks/serve.py DATA_DIR MODEL --before COMMIT [--texts 200] [--rounds 1]

All three servers run at once and are asked in turns, so that other load on the machine falls on each alike. The texts
are beginnings of responses. Rewards are compared with those of `sparserm score`. Writes `results/serve.md`.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import torch
from layers import RESULTS, machine

from sparserm_hf import load_preferences
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows

ROOT = Path(__file__).parent.parent
SMALL = {"rows": [{"text": "A short answer."}]}
SMALL_REQUESTS = 10
CHARACTERS = 60  # of a text
CALLERS = (1, 16, 200)
TOLERANCE = 1e-3  # of a reward in float32
LONG_TEXT = 31 * 10**6  # characters

Client = httpx.AsyncClient
Figures = dict[tuple[str, str], list[float]]  # by figure and server


def checkout(commit: str, folder: str) -> dict[str, str]:
    """The environment in which Python imports the package as it was at a commit."""
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=ROOT, check=True)
    for name in ("modeling", "hub_cards"):
        (Path(folder) / "src" / "sparserm_hf" / name).symlink_to(Path(folder) / name)
    return {"PYTHONPATH": str(Path(folder) / "src")}


def start(model: str, environment: dict[str, str], *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server and its address."""
    command = [sys.executable, "-m", "sparserm_hf.cli", "serve", model, "--port", "0", "--dtype", "float32", *options]
    rest = {name: value for name, value in os.environ.items() if name != "SPARSERM_TOKEN"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=rest | environment)
    assert server.stdout is not None
    address = re.search(r"http://\S+", server.stdout.readline())
    assert address is not None
    return server, address[0]


async def seconds(client: Client, body: dict) -> float:
    """How long an answer takes, a refusal too."""
    started = time.perf_counter()
    await client.post("/score", json=body)
    return time.perf_counter() - started


async def alone(client: Client) -> float:
    """Median milliseconds of small requests, one after the other on one connection."""
    return float(np.median([await seconds(client, SMALL) for _ in range(SMALL_REQUESTS)])) * 1e3


async def throughput(client: Client, rows: list[dict], callers: int, bad: list[str]) -> float:
    """Responses a second where callers take one response after the other; lost and wrong ones go to `bad`."""
    left = list(rows)

    async def caller() -> None:
        while left:
            row = left.pop()
            try:
                answer = await client.post("/score", json={"rows": [{"text": row["text"]}]})
                reward = answer.json()["rows"][0]["reward"]
            except (httpx.HTTPError, KeyError, ValueError) as error:
                bad.append(f"lost: {error!r}")
                continue
            if abs(reward - row["reward"]) > TOLERANCE:
                bad.append(f"wrong: {reward} for {row['reward']}")

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(rows) / (time.perf_counter() - started)


async def behind(client: Client, large: dict) -> float:
    """Seconds of a small request that is sent 0.3 s after a large one."""
    first = asyncio.create_task(seconds(client, large))
    await asyncio.sleep(0.3)
    small = await seconds(client, SMALL)
    await first
    return small


async def measure(addresses: dict[str, str], rows: list[dict], rounds: int, bad: list[str]) -> Figures:
    """Every figure of every server, the servers in turns."""
    figures: Figures = defaultdict(list)
    many = {"rows": [{"text": row["text"]} for row in rows]}
    long = {"rows": [{"text": "word " * (LONG_TEXT // 5)}]}
    tasks: list[tuple[str, int, Callable[[Client], Awaitable[float]]]] = [
        ("a lone small request, milliseconds", rounds, alone),
        *(
            (f"{n} callers, texts a second", rounds, lambda client, n=n: throughput(client, rows, n, bad))
            for n in CALLERS
        ),
        (f"a small request behind one of {len(rows)} texts, seconds", rounds, lambda client: behind(client, many)),
        ("a small request behind a text of 31 MB, seconds", 1, lambda client: behind(client, long)),
    ]
    limits = httpx.Limits(max_connections=max(CALLERS))
    for name, repeats, task in tasks:
        for _ in range(repeats):
            for server, address in addresses.items():
                async with Client(base_url=address, timeout=300, limits=limits) as client:
                    await seconds(client, SMALL)  # warm
                    figures[name, server].append(await task(client))
                print(f"{server}: {name}: {figures[name, server][-1]:.2f}", file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_reward_model(args.model, device, "float32")
    pairs = load_preferences(str(args.data / "truthfulness" / "test.jsonl.gz"))
    rows = [{"text": row["chosen"][-1]["content"][:CHARACTERS]} for row in pairs][: args.texts]
    list(score_rows(model, tokenizer, rows[:32]))
    offline = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        rows = list(score_rows(model, tokenizer, rows))
        offline.append(len(rows) / (time.perf_counter() - started))
    del model
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        before = checkout(args.before, f"{folder}/before")
        stack.callback(subprocess.run, ["git", "worktree", "remove", "--force", f"{folder}/before"], cwd=ROOT)
        addresses = {}
        for name, environment, options in (("before", before, ()), ("now", {}, ()), ("`--exact`", {}, ("--exact",))):
            server, addresses[name] = start(args.model, environment, *options)
            stack.callback(server.wait)
            stack.callback(server.terminate)
        figures = asyncio.run(measure(addresses, rows, args.rounds, bad))
    print("\n".join(bad), file=sys.stderr)
    text = f"{machine()}. Made by `python benchmarks/serve.py`; before is {args.before}. Rounds: {args.rounds}, "
    text += f"the servers in turns. {len(rows)} texts of at most {CHARACTERS} characters, float32.\n\n"
    text += f"| | {' | '.join(addresses)} |\n|---|{'---:|' * len(addresses)}\n"
    for name in dict.fromkeys(name for name, _ in figures):
        found = [f"{np.median(figures[name, server]):.2f}" for server in addresses]
        text += f"| {name} | {' | '.join(found)} |\n"
    text += f"\n`sparserm score` alone: {np.median(offline):.1f} texts a second. Answers lost or wrong: {len(bad)}.\n"
    (RESULTS / "serve.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
