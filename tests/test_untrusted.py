"""What checkpoints, base models and tokenizers of others may bring: none of their code is run."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_causal_lm, tiny_tokenizer
from world import make_rows, train_arguments, write_jsonl

from sparserm_hf.cli.main import main
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring import ClassifierRewardModel

ROOT = Path(__file__).parent.parent
CODE = "open(__file__ + '.ran', 'w').close()\nclass Theirs: pass\n"
AUTO_MAPS = {  # which class a folder brings, by its configuration file
    "tokenizer_config.json": {"AutoTokenizer": [None, "theirs.Theirs"]},
    "config.json": {"AutoConfig": "theirs.Theirs"},
}


def poison(folder, file, **changes):
    """Make a folder name code of its own, as remote code does that is published with a model."""
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes | {"auto_map": AUTO_MAPS[file]}))
    (folder / "theirs.py").write_text(CODE)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "Theirs"}),
        ("tokenizer_config.json", {}),
        ("config.json", {"model_type": "theirs"}),
    ],
)
@pytest.mark.parametrize("command", ["train", "score", "judge"])
def test_code_from_a_folder_is_never_run(command, file, changes, world, trained, tmp_path, monkeypatch, capsys):
    """transformers asks on standard input, and a line with a `y` ran it; a harmless pipe lost its first line."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(4))
    hostile = tmp_path / "hostile"
    if command == "score":
        hostile.mkdir()
        for path in Path(trained).iterdir():
            if path.is_file():
                (hostile / path.name).write_bytes(path.read_bytes())
    else:
        tiny_causal_lm().save_pretrained(hostile)
        save_tokenizer(tiny_tokenizer(), hostile)
    poison(hostile, file, **changes)
    answers = io.StringIO("y\ny\ny\n")
    monkeypatch.setattr(sys, "stdin", answers)
    if command == "train":
        code = main(train_arguments(world, tmp_path / "out", model=hostile))
    elif command == "score":
        code = main(["score", str(hostile), rows, "--output", str(tmp_path / "scores.jsonl")])
    else:
        code = judge(hostile)
    assert not list(tmp_path.rglob("*.ran")) and answers.tell() == 0
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error
    if changes:
        assert code == 2


def judge(folder):
    """Load a folder as a judge of answers; the exit code that a command would have."""
    try:
        ClassifierRewardModel.load(str(folder), torch.device("cpu"))
    except SparseRMError:
        return 2
    return 0


def test_every_auto_class_is_told_not_to_run_code():
    """The question is asked wherever one of them is not told."""
    told = 0
    for path in (*(ROOT / "src").rglob("*.py"), *(ROOT / "modeling").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            owner, _, method = ast.unparse(call.func).rpartition(".") if isinstance(call, ast.Call) else ("", "", "")
            if method in ("from_pretrained", "from_config") and (owner.startswith("Auto") or owner == "loader"):
                assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
                told += 1
    assert told > 8
