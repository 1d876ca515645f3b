"""What scoring a billion responses takes, by the rate at which one machine scores some hundred.

    python benchmarks/billion.py DATA_DIR MODEL [--vllm PYTHON]

`sparserm score --engine ray` scores two Parquet files of responses to prompts of the safety task, one a few times as
long as the other. The rate is that of the rows between, so that neither starting nor loading counts. With `--vllm`,
the Python of an environment with vLLM and Ray, `examples/score_with_vllm.py` scores the same files. Bytes are those of
the longer file, before and after. Writes `results/billion.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from layers import RESULTS, machine, seconds
from serve import CPU
from tqdm.auto import tqdm

from sparserm_hf import load_preferences
from sparserm_hf.integrations.ray_data import PART_CHUNKS
from sparserm_hf.scoring.scored_rows import CHUNK_ROWS

RESPONSES = 1e9
NUMBERS = (100, 500)  # of responses in the two files
EXAMPLE = Path(__file__).parents[1] / "examples" / "score_with_vllm.py"
OURS = "sparserm score --engine ray"
PART = PART_CHUNKS * CHUNK_ROWS


def write_rows(data: Path, folder: Path) -> list[Path]:
    """Write the Parquet files, and return their paths."""
    pairs = load_preferences(str(data / "safety" / "test.jsonl.gz"))
    rows = [{"messages": row["prompt"] + row[side]} for row in pairs for side in ("chosen", "rejected")]
    paths = [folder / f"{number}.parquet" for number in NUMBERS]
    for path, number in zip(paths, NUMBERS, strict=True):
        pq.write_table(pa.Table.from_pylist(rows[:number]), path)
    return paths


def output_of(path: Path, name: str) -> Path:
    """The folder that a command writes for a Parquet file."""
    return path.with_name(f"{path.stem}-{name}")


def rate(command: list[str], paths: list[Path], name: str) -> float:
    """Responses a second of a command that takes a Parquet file and a folder to write, both at its end."""
    taken = []
    for path in tqdm(paths, name):
        run = [*command, str(path), str(output_of(path, name))]
        call = partial(subprocess.run, run, env=CPU | os.environ, check=True, stdout=subprocess.DEVNULL)
        taken.append(seconds(call))
    return (NUMBERS[1] - NUMBERS[0]) / (taken[1] - taken[0])


def size(path: Path) -> int:
    """Bytes of a Parquet file, or of a folder of them."""
    return sum(file.stat().st_size for file in (path.glob("*.parquet") if path.is_dir() else [path]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vllm")
    args = parser.parse_args()
    # `sparserm score` takes the output as an option; this ends with both paths, as the example does.
    call = "import sys; from sparserm_hf import score_parquet; score_parquet(*sys.argv[1:])"
    commands = {OURS: [sys.executable, "-c", call, str(args.model)]}
    if args.vllm:
        commands["vLLM on Ray Data"] = [args.vllm, str(EXAMPLE), str(args.model)]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_rows(args.data, Path(folder))
        rates = {name: rate(command, paths, name) for name, command in commands.items()}
        before, after = (size(path) * RESPONSES / NUMBERS[1] / 1e9 for path in (paths[1], output_of(paths[1], OURS)))
    depth = json.loads((args.model / "config.json").read_text())["layer"]
    lines = [
        f"{machine()}. SmolLM2-135M-Instruct cut after layer {depth}, responses of PKU-SafeRLHF with their prompts. "
        "Made by `python benchmarks/billion.py`.",
        "",
        f"| | {' | '.join(rates)} |",
        f"|---|{'---:|' * len(rates)}",
    ]
    for name, figure in {
        "responses a second on one machine like this": lambda r: f"{r:,.1f}",
        "machine-hours for a billion": lambda r: f"{RESPONSES / r / 3600:,.0f}",
        "machines to be done in a week": lambda r: f"{RESPONSES / r / 3600 / 168:,.0f}",
    }.items():
        lines.append(f"| {name} | {' | '.join(map(figure, rates.values()))} |")
    lines += [
        "",
        f"A billion responses are {before:,.0f} GB of Parquet, and {after:,.0f} GB with their rewards. "
        f"`sparserm score` writes {RESPONSES / PART:,.0f} files of {PART:,} rows; an actor that is lost costs at most "
        f"one of them, {PART / rates[OURS] / 60:,.0f} minutes here.",
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "billion.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
