"""What scoring a billion responses takes, worked out from what `speed.py` and `growth.py` measured here.

    python benchmarks/billion.py DATA_DIR

The responses are like those of the safety task. Bytes are those of its test file as Parquet, before and after scoring.
Writes `results/billion.md`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from layers import RESULTS, load_pairs, machine

from sparserm_hf import load_preferences
from sparserm_hf.integrations.ray_data import PART_CHUNKS
from sparserm_hf.scoring.scored_rows import CHUNK_ROWS

RESPONSES = 1e9
TASK = "safety"


def bytes_a_response(data: Path) -> tuple[float, float]:
    """Of Parquet, before and after scoring; a row of the file has two responses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        rows = load_preferences(str(data / TASK / "test.jsonl.gz"))
        rows.to_parquet(path)
        before = path.stat().st_size
        table = pq.read_table(path)
        rewards = np.random.default_rng(0).standard_normal((2, len(rows)), dtype=np.float32).astype(np.float64)
        for name, values in zip(("chosen_reward", "rejected_reward"), rewards, strict=True):
            table = table.append_column(name, pa.array(values))
        pq.write_table(table, path)
        return before / len(rows) / 2, path.stat().st_size / len(rows) / 2


def main(data: Path) -> None:
    speed = json.loads((RESULTS / "speed.json").read_text())["scoring"]["reward model, tokens a second"]
    one, two = (row["tokens a second"] for row in json.loads((RESULTS / "growth.json").read_text())["processes"])
    tokens = float(np.mean([len(text) for text in load_pairs(data, TASK, "test").texts]))
    before, after = bytes_a_response(data)
    rate = speed / tokens
    hours = RESPONSES / rate / 3600
    part = PART_CHUNKS * CHUNK_ROWS
    rows = {
        "tokens a response, prompt included": f"{tokens:,.0f}",
        "responses a second on one machine like this": f"{rate:,.1f}",
        "machine-hours for a billion": f"{hours:,.0f}",
        "machines to be done in a week": f"{hours / 168:,.0f}",
        "speed-up of extraction by a second process (measured, one thread each)": f"{two / one:.2f}",
        "Parquet read, GB": f"{RESPONSES * before / 1e9:,.0f}",
        "Parquet written, GB": f"{RESPONSES * after / 1e9:,.0f}",
        "output files": f"{RESPONSES / 2 / part:,.0f}",
        "most that a lost actor costs, minutes": f"{2 * part / rate / 60:,.0f}",
    }
    text = f"{machine()}. SmolLM2-135M cut at layer 18. Made by `python benchmarks/billion.py`.\n\n| | |\n|---|---:|\n"
    text += "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    (RESULTS / "billion.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
