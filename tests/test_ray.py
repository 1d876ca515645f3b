"""Ray Data on a local cluster: the same bits as one process, whatever is lost on the way."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from datasets import Dataset
from world import make_rows, one_thread

from sparserm_hf.cli.main import main
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring import scored_rows as scoring

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytestmark = pytest.mark.works_with(
    "ray",
    "`sparserm score --engine ray`: resumes, replaces lost actors",
)

ray = pytest.importorskip("ray")
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from sparserm_hf.integrations import ray_data  # noqa: E402

COUNT = 2 * scoring.CHUNK_ROWS + 76


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Parquet file of several row groups, which end elsewhere than chunks do."""
    path = tmp_path_factory.mktemp("ray") / "pairs.parquet"
    Dataset.from_list(make_rows(COUNT, seed=7)).to_parquet(path, batch_size=300)
    assert pq.ParquetFile(path).num_row_groups > 2
    return path


@pytest.fixture(scope="module")
def expected(source, trained):
    """What one process makes of it, with as many threads as each of two actors gets: they decide the last bit."""
    output = source.with_name("alone.jsonl")
    with one_thread():
        assert main(["score", str(trained), str(source), "--output", str(output), "--dtype", "float32"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return [row | {"reward_error": None} for row in rows]  # a Parquet file has the column in every row


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def one_chunk_a_part(monkeypatch):
    monkeypatch.setattr(ray_data, "PART_CHUNKS", 1)


def test_a_lost_actor_is_replaced(cluster, one_chunk_a_part, source, expected, trained, tmp_path, monkeypatch):
    marker = tmp_path / "died"

    class DiesOnce(ray_data.PartScorer):
        def __call__(self, part):
            if part["number"] == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(part)

    monkeypatch.setattr(ray_data, "PartScorer", DiesOnce)
    ray_data.score_parquet(str(trained), source, tmp_path / "scored", dtype="float32", workers=2)
    assert marker.exists()
    assert pq.read_table(tmp_path / "scored").to_pylist() == expected


def test_a_run_that_gave_up_goes_on_and_equals_one_process_bit_for_bit(
    cluster, one_chunk_a_part, source, expected, trained, tmp_path, monkeypatch, capsys
):
    class Fails(ray_data.PartScorer):
        def score(self, part, table, rows, path):
            if part["number"] == 2:
                for _ in range(600):  # until the other worker is done: the run ends with the error
                    if len(list(self.folder.glob("part-*.parquet"))) == 2:
                        break
                    time.sleep(0.1)
                raise MemoryError("too little")
            super().score(part, table, rows, path)

    scored = tmp_path / "scored"
    with monkeypatch.context() as patch:
        patch.setattr(ray_data, "PartScorer", Fails)
        with pytest.raises(SparseRMError, match="MemoryError: too little"):
            ray_data.score_parquet(str(trained), source, scored, dtype="float32", workers=2)
    assert not scored.exists()
    (parts,) = tmp_path.glob("scored.*.parts")
    before = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(before) == 2
    command = ["score", str(trained), str(source), "--engine", "ray", "--workers", "2", "--dtype", "float32"]
    assert main([*command, "--output", str(scored)]) == 0
    kept = 2 * scoring.CHUNK_ROWS
    assert f"Wrote {scored}; {kept} rows were there from a run before." in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["scored"]
    assert sorted(path.name for path in scored.iterdir()) == [f"part-{i:06d}.parquet" for i in range(3)]
    assert {path: (scored / path.name).stat().st_mtime_ns for path in before} == before
    assert pq.read_table(scored).to_pylist() == expected
    assert main([*command, "--output", str(scored)]) == 2, "nothing is overwritten"


def test_a_run_does_not_go_on_with_the_rows_of_another_file(cluster, one_chunk_a_part, trained, tmp_path, monkeypatch):
    """Of two files with the same footer, the scores of one came back for 4,095 rows of the other."""
    texts = [[f"w{(i * k) % 60:02d}" for i in range(scoring.CHUNK_ROWS)] for k in (7, 11)]
    source, alone = tmp_path / "rows.parquet", tmp_path / "alone.jsonl"
    tables = [pa.table({"text": ["w00", *column, "w59"] * 2}) for column in texts]

    def run():
        return ray_data.score_parquet(str(trained), source, tmp_path / "scored", dtype="float32", workers=1)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: 1 / 0)  # the last step of a run
        pq.write_table(tables[0], source, compression="none", use_dictionary=False)
        with pytest.raises(ZeroDivisionError):
            run()
        assert len(list(tmp_path.glob("scored.*.parts/*.parquet"))) == 3
    footer = ray_data.fingerprint_files([source])
    pq.write_table(tables[1], source, compression="none", use_dictionary=False)
    assert ray_data.fingerprint_files([source]) == footer
    (part,) = tmp_path.glob("scored.*.parts/part-000002.parquet")
    assert run().kept == 0
    assert main(["score", str(trained), str(source), "--output", str(alone), "--dtype", "float32"]) == 0
    expected = [json.loads(line)["reward"] for line in alone.read_text().splitlines()]
    assert pq.read_table(tmp_path / "scored")["reward"].to_pylist() == pytest.approx(expected, abs=1e-5)
    broken = bytearray((tmp_path / "scored" / part.name).read_bytes())
    assert ray_data.rows_of(tmp_path / "scored" / part.name) is not None
    broken[len(broken) // 4] ^= 1
    (tmp_path / "broken.parquet").write_bytes(broken)
    assert ray_data.rows_of(tmp_path / "broken.parquet") is None


def test_a_folder_of_files_keeps_its_order_and_the_columns(cluster, trained, tmp_path):
    rows = make_rows(30, seed=8)
    folder = tmp_path / "in"
    folder.mkdir()
    for i, part in enumerate((rows[:20], rows[20:])):
        Dataset.from_list([row | {"id": 7, "chosen_reward": 0.5} for row in part]).to_parquet(folder / f"{i}.parquet")
    ray_data.score_parquet(str(trained), folder, tmp_path / "out")
    scored = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["prompt"] for row in scored] == [row["prompt"] for row in rows]
    assert all(row["id"] == 7 and row["chosen_reward"] != 0.5 for row in scored)


def test_a_row_that_cannot_be_scored_says_why_and_the_others_are_scored(cluster, trained, tmp_path, capsys):
    bad = tmp_path / "bad.parquet"
    Dataset.from_list([{"text": "w1"}, {"text": ""}, {"text": "w1 w2"}]).to_parquet(bad)
    assert main(["score", str(trained), str(bad), "--engine", "ray", "--output", str(tmp_path / "out")]) == 2
    sentence = f"{bad}, row 2 has an empty text: there is nothing to score."
    assert capsys.readouterr().err.splitlines()[-1] == f"sparserm: error: {sentence}"
    first, second, third = pq.read_table(tmp_path / "out").to_pylist()
    assert second == {"text": "", "reward": None, "reward_error": sentence}
    assert first["reward"] != third["reward"] and first["reward_error"] is third["reward_error"] is None


def test_bad_input_gets_one_sentence(cluster, trained, tmp_path, capsys):
    bad = tmp_path / "bad.parquet"
    Dataset.from_list([{"text": "w1"}]).to_parquet(bad)
    (tmp_path / "rows.jsonl").write_text('{"text": "w1"}\n')
    cases = [
        (tmp_path / "rows.jsonl", ["--output", tmp_path / "out"], "reads a .parquet file or a folder"),
        (tmp_path / "absent.parquet", ["--output", tmp_path / "out"], "reads a .parquet file or a folder"),
        (bad, [], "name it with --output"),
        (bad, ["--output", tmp_path / "out", "--workers", 0], "workers is 0, but must be at least 1"),
    ]
    capsys.readouterr()
    for source, options, sentence in [*cases, (bad, ["--output", tmp_path / "out"], "cannot be loaded")]:
        model = tmp_path / "nothing" if sentence == "cannot be loaded" else trained
        assert main(["score", str(model), str(source), "--engine", "ray", *map(str, options)]) == 2
        shown = capsys.readouterr().err.strip()
        assert sentence in shown and len(shown.splitlines()) == 1, shown
    assert not (tmp_path / "out").exists()
