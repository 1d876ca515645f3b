"""200 callers at once on `sparserm serve`: no answer lost or wrong, and how the throughput compares with `score`.

    python benchmarks/serve_load.py DATA_DIR MODEL [--seconds 60] [--callers 200]

Each caller sends one to four responses of the safety task, waits for the answer, compares every reward with what
`sparserm score` made of that response, and sends the next. In float32, so that batches cannot change a reward by more
than 1e-3. Writes `results/serve_load.md`.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import torch
from layers import RESULTS, machine
from tqdm.auto import tqdm

from sparserm_hf import load_preferences
from sparserm_hf.scoring import load_reward_model, score_rows

RESPONSES = 512


async def call(client: httpx.AsyncClient, rows: list[dict], until: float, seed: int) -> dict[str, list]:
    """One caller: seconds of each answer, its number of responses, and what was wrong."""
    draw = random.Random(seed)
    found: dict[str, list] = {"seconds": [], "responses": [], "wrong": [], "lost": []}
    while time.perf_counter() < until:
        some = draw.sample(rows, draw.randint(1, 4))
        started = time.perf_counter()
        try:
            sent = [{name: row[name] for name in ("prompt", "completion")} for row in some]
            answer = await client.post("/score", json={"rows": sent})
            rewards = [row["reward"] for row in answer.json()["rows"]]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            found["lost"].append(repr(error))
            continue
        found["seconds"].append(time.perf_counter() - started)
        found["responses"].append(len(some))
        pairs = zip(some, rewards, strict=True)
        found["wrong"] += [row for row, reward in pairs if abs(row["reward"] - reward) > 1e-3]
    return found


async def load(address: str, rows: list[dict], callers: int, seconds: float) -> tuple[list[dict[str, list]], float]:
    limits = httpx.Limits(max_connections=callers)
    async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
        await call(client, rows, time.perf_counter() + 1, -1)  # warm
        started = time.perf_counter()
        found = await asyncio.gather(*(call(client, rows, started + seconds, seed) for seed in range(callers)))
        return found, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--callers", type=int, default=200)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_reward_model(args.model, device, "float32")
    pairs = load_preferences(str(args.data / "safety" / "test.jsonl.gz"))
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs][:RESPONSES]
    list(score_rows(model, tokenizer, rows[:32]))
    started = time.perf_counter()
    rows = list(tqdm(score_rows(model, tokenizer, rows), total=len(rows), desc="Offline"))
    offline = len(rows) / (time.perf_counter() - started)
    del model
    command = [sys.executable, "-m", "sparserm_hf.cli", "serve", args.model, "--port", "0", "--dtype", "float32"]
    environment = {name: value for name, value in os.environ.items() if name != "SPARSERM_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None
        found, taken = asyncio.run(load(address[0], rows, args.callers, args.seconds))
        server.terminate()
    seconds = np.concatenate([caller["seconds"] for caller in found])
    answered = sum(sum(caller["responses"]) for caller in found)
    measured = {
        "callers": f"{args.callers}",
        "requests answered": f"{len(seconds):,}",
        "responses scored": f"{answered:,}",
        "answers lost": f"{sum(len(caller['lost']) for caller in found)}",
        "rewards wrong": f"{sum(len(caller['wrong']) for caller in found)}",
        "responses a second": f"{answered / taken:.1f}",
        "`sparserm score`, responses a second": f"{offline:.1f}",
        "share of it": f"{answered / taken / offline:.2f}",
        "median seconds to an answer": f"{np.median(seconds):.2f}",
        "95th percentile": f"{np.percentile(seconds, 95):.2f}",
    }
    for lost in {error for caller in found for error in caller["lost"]}:
        print(f"Lost: {lost}", file=sys.stderr)
    text = f"{machine()}. Made by `python benchmarks/serve_load.py`.\n\n| | |\n|---|---:|\n"
    text += "".join(f"| {name} | {value} |\n" for name, value in measured.items())
    (RESULTS / "serve_load.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
