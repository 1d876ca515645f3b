"""Servers of one reward model side by side: `sparserm serve`, the same with `--exact`, and vLLM.

    python benchmarks/serve.py DATA_DIR MODEL [--vllm PYTHON] [--conversations 200] [--rounds 3]

Some callers send one conversation after the other to `/classify`, which all of these servers have, and compare the
rewards with those of `model.predict`. All servers run at once, in float32, and are asked in turns, so that other load
on the machine falls on each alike. PYTHON is that of an environment with vLLM and this package. Writes
`results/serve.md`.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import torch
from layers import RESULTS, machine, seconds

from sparserm_hf import load_preferences, load_reward_model
from sparserm_hf.conversations import Messages

CALLERS = (1, 16, 200)
PATIENCE = 300  # seconds for a server to start, and for an answer
# vLLM's settings for a CPU: threads on any core, one for each, and 1 GiB for the states of tokens.
CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(torch.get_num_threads())}
CPU |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass
class Measured:
    """What callers saw of a server: responses a second in each round, and seconds and rewards of each response."""

    per_second: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """Run a server, and give its address when it answers."""
    rest = {name: value for name, value in os.environ.items() if name != "SPARSERM_TOKEN"}
    server = subprocess.Popen([*command, "--port", str(port)], env=CPU | rest, stdout=sys.stderr)
    address, ends = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > ends:
                    sys.exit(f"This server does not start: {' '.join(command)}")
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait()


async def ask(address: str, expected: list[tuple[Messages, float]], callers: int, found: Measured) -> None:
    """Let callers send one conversation after the other, each with the reward that is expected."""
    left = list(expected)
    limits = httpx.Limits(max_connections=callers)

    async def caller() -> None:
        while left:
            messages, reward = left.pop()
            started = time.perf_counter()
            answer = (await client.post("/classify", json={"messages": messages})).raise_for_status().json()
            found.seconds.append(time.perf_counter() - started)
            found.differences.append(abs(answer["data"][0]["probs"][0] - reward))

    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
        await client.post("/classify", json={"messages": expected[0][0]})  # warm
        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        found.per_second.append(len(expected) / (time.perf_counter() - started))


def version(python: str) -> str:
    """The version of vLLM in an environment."""
    code = "import vllm; print(vllm.__version__)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pairs = load_preferences(str(args.data / "truthfulness" / "test.jsonl.gz"), f"train[:{args.conversations}]")
    conversations = [row["prompt"] + row["chosen"] for row in pairs]
    model, tokenizer = load_reward_model(args.model, "cuda" if torch.cuda.is_available() else "cpu", "float32")
    expected = list(zip(conversations, model.predict(conversations, tokenizer), strict=True))
    ours = [sys.executable, "-m", "sparserm_hf.cli", "serve", args.model, "--dtype", "float32"]
    servers = {"`sparserm serve`": ours, "`sparserm serve --exact`": [*ours, "--exact"]}
    if args.vllm:
        served = [args.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", args.model, "--dtype", "float32"]
        servers[f"vLLM {version(args.vllm)}"] = [*served, "--enforce-eager"]
    alone: list[float] = []
    measured = {(callers, name): Measured() for callers in CALLERS for name in servers}
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(running(command, free_port())) for name, command in servers.items()}
        for callers in CALLERS:
            for _ in range(args.rounds):
                alone.append(len(conversations) / seconds(lambda: model.predict(conversations, tokenizer)))
                for name, address in addresses.items():
                    found = measured[callers, name]
                    asyncio.run(ask(address, expected, callers, found))
                    print(f"{name}, {callers} callers: {found.per_second[-1]:.2f} a second", file=sys.stderr)
    offline = float(np.median(alone))
    lines = [
        f"{len(conversations)} conversations of TruthfulQA, SmolLM2-135M-Instruct in float32, {args.rounds} rounds, "
        f"the servers in turns. {machine()}. Made by `python benchmarks/serve.py`.\n",
        "| | responses a second | ratio to `predict` | median, seconds | 99th percentile | largest difference |",
        "|---|" + "---:|" * 5,
        f"| `model.predict`, all at once | {offline:.2f} | 1.00 | | | |",
    ]
    for (callers, name), found in measured.items():
        median, slow = np.quantile(found.seconds, [0.5, 0.99])
        rate = float(np.median(found.per_second))
        lines.append(
            f"| {name}, callers: {callers} | {rate:.2f} | {rate / offline:.2f} | {median:.2f} | {slow:.2f} "
            f"| {max(found.differences):.1e} |"
        )
    (RESULTS / "serve.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
