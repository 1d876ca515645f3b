"""Scoring: rows in, rows with rewards out, in one process or in several, and what a kill leaves."""

import json
import os
import subprocess

import pytest
import torch
from tiny import tiny_reward_model, tiny_tokenizer
from world import TWO_PROCESSES, make_rows, train_arguments, write_jsonl

from sparserm_hf.cli.main import main
from sparserm_hf.explanations.explained_rows import explain_rows
from sparserm_hf.integrations.reward_function import SparseRMReward
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring import scored_rows as scoring
from sparserm_hf.scoring.resumable_files import score_to_file
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows


def test_no_more_tokens_are_read_than_there_are_positions():
    """`--max_length 2048` on a base model with 1,024 learned positions once ended in an IndexError."""
    model, tokenizer = tiny_reward_model("gpt2"), tiny_tokenizer()
    rows = [{"text": "w1 " * 300}]
    limited, unlimited = ([*score_rows(model, tokenizer, rows, length)] for length in (2048, 128))
    assert limited == unlimited


def test_scores_stream_in_order_and_resume(world, trained, tmp_path, capsys, monkeypatch):
    rows = make_rows(20, seed=5)
    mixed = [
        *rows[:10],
        *({"id": i, "prompt": row["prompt"], "completion": row["chosen"]} for i, row in enumerate(rows[10:14])),
        *({"messages": row["prompt"] + row["chosen"]} for row in rows[14:18]),
        {"text": "w1 w2 w3"},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", mixed)
    assert main(["score", str(trained), source]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [{k: v for k, v in row.items() if not k.endswith("reward")} for row in scored] == mixed
    assert {"chosen_reward", "rejected_reward"} <= set(scored[0]) and all("reward" in row for row in scored[10:])
    pairs = [row["chosen_reward"] > row["rejected_reward"] for row in scored[:10]]
    assert sum(pairs) >= 7

    monkeypatch.setattr(scoring, "CHUNK_ROWS", 4)
    real, calls = scoring.score_texts, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(scoring, "score_texts", dies)
    # Longer than a terminal is wide, and with what rich takes for a style: its line was once broken, or the name cut.
    out = tmp_path / f"{'long-' * 20}[bold].jsonl"
    assert main(["score", str(trained), source, "--output", str(out)]) == 130
    (parts,) = tmp_path.glob("*.parts")
    assert len(list(parts.iterdir())) == 2
    (parts / ".000002-0.jsonl.1").write_text('{"half a li')  # what a SIGKILL leaves
    calls.clear()
    monkeypatch.setattr(scoring, "score_texts", lambda *args: calls.append(1) or real(*args))
    assert main(["score", str(trained), source, "--output", str(out)]) == 0
    assert f"Wrote {out}; 8 rows were there" in capsys.readouterr().out and len(calls) == 3
    resumed = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row.keys() for row in resumed] == [row.keys() for row in scored]
    for one, other in zip(resumed, scored, strict=True):
        for name in ("reward", "chosen_reward", "rejected_reward"):
            if name in one:
                assert one[name] == pytest.approx(other[name], abs=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", out.name}
    assert main(["score", str(trained), source, "--output", str(out)]) == 2, "nothing is overwritten"


def test_a_run_goes_on_only_with_the_same_model_and_rows(world, trained, tmp_path, monkeypatch):
    """Named by paths alone, a run once continued the rows of another input, scored by a model since retrained."""
    model, tokenizer = load_reward_model(str(trained), torch.device("cpu"))
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 2)
    old, new = make_rows(8, seed=1), make_rows(8, seed=2)
    mixed = [*old[:3], *new[3:]]
    whole = list(score_rows(model, tokenizer, mixed))

    def interrupted(rows):
        yield from rows[:6]
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_to_file(model, tokenizer, interrupted(old), out)
    assert score_to_file(model, tokenizer, mixed, out).kept == 2, "the two rows of the one chunk that both inputs have"
    assert [json.loads(line) for line in out.read_text().splitlines()] == whole
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        score_to_file(model, tokenizer, interrupted(old), out)
    model.score.weight.data += 1
    assert score_to_file(model, tokenizer, old, out).kept == 0


def test_a_row_that_cannot_be_scored_says_why_and_the_others_are_scored(trained, tmp_path, capsys):
    """One empty text once cost a run of a million rows everything that came after it."""
    good, bad = make_rows(2, seed=3), {"id": 1, "messages": [{"role": "user", "content": "w1"}]}
    rows = [good[0], {"text": "", "reward": 1.0}, bad, good[1] | {"reward_error": "of a run before"}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    assert main(["score", str(trained), source]) == 2
    shown = capsys.readouterr()
    assert main(["score", str(trained), source, "--output", str(tmp_path / "out.jsonl")]) == 2
    assert [json.loads(line) for line in shown.out.splitlines()] == [
        json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()
    ]
    scored = [json.loads(line) for line in shown.out.splitlines()]
    assert scored[1].keys() == {"text", "reward_error"} and "row 2 has an empty text" in scored[1]["reward_error"]
    assert scored[2].keys() == {*bad, "reward_error"} and "the role 'user'" in scored[2]["reward_error"]
    for row in (scored[0], scored[3]):
        assert row.keys() == {*good[0], "chosen_reward", "rejected_reward"}
    told = [line for line in shown.err.splitlines() if line.startswith("sparserm: error: ")]
    assert told == [f"sparserm: error: {scored[i]['reward_error']}" for i in (1, 2)]
    assert told[0].startswith(f"sparserm: error: {source}, row 2 ")


def test_a_reward_that_is_not_finite_is_an_error_of_its_row():
    """It was NaN in the output, which is no JSON, and nobody was told."""
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    rows = [{"text": "w1 w2"}, {"text": "w1 w9"}, {"prompt": "w1 ", "chosen": "w3", "rejected": "w9"}, {"text": "w4"}]
    expected = [*score_rows(model, tokenizer, rows)]
    (alone,) = score_rows(model, tokenizer, rows[:1])
    model.model.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("w9")] = float("inf")
    scored = [*score_rows(model, tokenizer, rows, source="rows.jsonl")]
    assert [scored[0], scored[3]] == [expected[0], expected[3]]
    for number in (2, 3):
        error = f"rows.jsonl, row {number} has a reward that is not finite, as the base model overflows on it"
        assert scored[number - 1].keys() == {*rows[number - 1], "reward_error"}
        assert error in scored[number - 1]["reward_error"]
    assert "Row 2 has a reward that is not finite" in [*explain_rows(model, tokenizer, rows)][1].error
    function = SparseRMReward("model")
    function._loaded = model, tokenizer
    assert function(["w1 "], ["w2"]) == pytest.approx([alone["reward"]])
    with pytest.raises(SparseRMError, match="Row 2 has a reward that is not finite"):
        function(["w1 ", "w1 "], ["w2", "w9"])


def test_several_processes_share_the_rows_and_a_lost_one_costs_one_chunk(trained, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "in.jsonl", make_rows(40, seed=6))
    script = tmp_path / "score.py"
    script.write_text(
        "import os, sys\n"
        "from sparserm_hf.scoring import scored_rows as scoring\n"
        "from sparserm_hf.cli import main\n"
        "scoring.CHUNK_ROWS = 4\n"
        "real, calls = scoring.score_texts, []\n"
        "def counted(*args):\n"
        "    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) > int(os.environ['LIMIT']):\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(*args)\n"
        "scoring.score_texts = counted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(output, limit):
        command = [*TWO_PROCESSES, script, "score", trained, source, "--output", output]
        environment = os.environ | {"LIMIT": str(limit), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    lost = run(tmp_path / "two.jsonl", 2)
    assert lost.returncode != 0 and not (tmp_path / "two.jsonl").exists()
    (parts,) = tmp_path.glob("two.jsonl.*.parts")
    left = len(list(parts.glob("0*")))
    assert left >= 2, lost.stderr
    resumed = run(tmp_path / "two.jsonl", 100)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{4 * left} rows were there" in resumed.stdout.replace("\n", " ")
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 4)
    assert main(["score", str(trained), source, "--output", str(tmp_path / "one.jsonl")]) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_scoring_truncates_as_training_did(world, tmp_path):
    assert main(train_arguments(world, tmp_path / "out", max_length=20)) == 0
    model, tokenizer = load_reward_model(str(tmp_path / "out"), torch.device("cpu"))
    assert tokenizer.model_max_length == 20 and tokenizer.truncation_side == "left"
    long = "w1 " * 50
    (row,) = score_rows(model, tokenizer, [{"text": long}])
    ids = torch.tensor([tokenizer(long)["input_ids"][-20:]])
    assert row["reward"] == pytest.approx(model(ids, torch.ones_like(ids)).logits.item(), abs=1e-5)
