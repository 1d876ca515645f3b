"""Whatever a label, a name, a column or a text holds, it reaches the terminal as text."""

import ast
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from world import save_sae

from sparserm_hf.cli.main import main
from sparserm_hf.runtime.terminal import VisibleFormatter, one_line, visible

# Clear the screen, ring, a C1 sequence, delete, run backwards, a style and an emoji of rich, half of a surrogate pair.
HOSTILE = "w1\x1b[2J\x07\x9b31m\x7f\u202e\u2066[/red]:skull:\rgone\t\ud800"
LABEL = HOSTILE[:-1]  # half a pair is refused in a configuration, and cannot be in a file's name
NAME = "w1\x1b[2J\x9b31m\u202e[red]:skull:\r"  # of a file
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
BAR = re.compile(r"\r[A-Z][a-z ]+: [^\r\n]*")  # a progress bar, which goes back to the start of its line


def check(text):
    found = STEERS.search(BAR.sub("", text))
    assert not found, f"{found[0]!r} in {text[max(found.start() - 80, 0) : found.end() + 40]!r}"


@pytest.fixture(scope="module")
def hostile(world, trained, tmp_path_factory):
    """A checkpoint, an SAE and pairs with hostile names for everything."""
    folder = tmp_path_factory.mktemp("hostile")
    model = folder / NAME
    shutil.copytree(trained, model)
    config = json.loads((model / "config.json").read_text())
    latents = config["latents"]
    named = {"name": LABEL, "name_score": {"precision": 1.0, "recall": 1.0, "f1": 1.0}, "promotes": [LABEL]}
    latents[0]["label"] = latents[1]["description"] = LABEL
    config |= {
        "latents": [latent | named for latent in latents],
        "sae_source": {"neuronpedia_id": LABEL, "source": LABEL},
    }
    (model / "config.json").write_text(json.dumps(config))
    for file, key, old in (("controls", "controls", "length alone"), ("evaluation", "evaluation", "length alone")):
        rename(model / f"{file}.safetensors", key, old)
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    for row in rows:
        row["chosen"][0]["content"] += f" {LABEL}"
    (folder / f"{NAME}.jsonl").write_text("".join(json.dumps(row | {LABEL: 1}) + "\n" for row in rows[:20]))
    save_sae(folder / "sae" / NAME)
    return folder


def rename(path, key, old):
    """Give a control another name in a side file."""
    with safe_open(path, "numpy") as file:
        described = file.metadata()[key].replace(json.dumps(old), json.dumps(LABEL))
        tensors = {k.replace(old, LABEL): np.ascontiguousarray(file.get_tensor(k)) for k in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={key: described})


COMMANDS = {
    "explain": ["explain", "MODEL", "ROWS"],
    "latents": ["latents", "MODEL", "ROWS", "--examples", "1"],
    "monitor": ["monitor", "MODEL", "ROWS"],
    "evaluate": ["evaluate", "MODEL", "ROWS"],
    "report": ["report", "MODEL", "--output", "OUT.html"],
    "report on rows": ["report", "MODEL", "--dataset", "ROWS", "--output", "OUT.html", "--examples", "2"],
    "edit": ["edit", "MODEL", "--output_dir", "OUT", "--label", f"LATENT={LABEL}", "--steer", "LATENT=0.5"],
    "edit on rows": ["edit", "MODEL", "--output_dir", "OUT", "--steer", "LATENT=0", "--dataset", "ROWS"],
    "export": ["export", "MODEL", "--output_dir", "OUT"],
    "score into a file": ["score", "MODEL", "ROWS", "--output", "OUT"],
    "no rows": ["score", "MODEL", f"nothing{NAME}.jsonl"],
    "no model": ["score", f"nothing{NAME}", "ROWS"],
    "no dataset": ["evaluate", "MODEL", f"nothing{NAME}"],
    "wrong columns": ["score", "MODEL", "WRONG"],
    "broken line": ["score", "MODEL", "BROKEN"],
    "sae check": ["sae", "check", "--model", "BASE", "--sae", "SAE", "--dataset", "ROWS", "--dtype", "float32"],
    "no sae": ["sae", "check", "--model", "BASE", "--sae", NAME, "--dataset", "ROWS"],
    "sae find": ["sae", "find", NAME],
    "no base": ["sae", "check", "--model", NAME, "--sae", "SAE", "--dataset", "ROWS"],
    "train": ["train", "--model", NAME, "--sae", "SAE", "--dataset", "ROWS", "--output_dir", "OUT"],
    "unknown": ["score", "MODEL", "ROWS", f"--{NAME}"],
    "unknown command": [NAME],
    "no factor": ["edit", "MODEL", "--output_dir", "OUT", "--steer", f"LATENT={NAME}"],
}
FAIL = [command for command in COMMANDS if command.partition(" ")[0] in ("no", "wrong", "broken", "unknown")]
FAIL += ["sae find", "train", "export"]  # the last, for it pools otherwise than the stock form


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_a_name_steer_the_terminal(command, hostile, world, tmp_path, capsys, recwarn):
    """A label cleared the screen, and a file's name wrote a line that looked like ours."""
    (tmp_path / "wrong.jsonl").write_text(json.dumps({HOSTILE: 1}) + "\n")
    (tmp_path / "broken.jsonl").write_text(f'{{"text": "{NAME}\n')
    latent = json.loads((hostile / NAME / "config.json").read_text())["latents"][2]["id"]
    places = {
        "MODEL": hostile / NAME,
        "ROWS": hostile / f"{NAME}.jsonl",
        "OUT": tmp_path / f"out{NAME}",
        "OUT.html": tmp_path / f"out{NAME}.html",
        "BASE": world / "base",
        "SAE": hostile / "sae" / NAME,
        "WRONG": tmp_path / "wrong.jsonl",
        "BROKEN": tmp_path / "broken.jsonl",
    }
    arguments = [str(places.get(part, part)).replace("LATENT", str(latent)) for part in COMMANDS[command]]
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse's
        code = error.code
    found = capsys.readouterr()
    check(found.out)
    check(found.err)
    check("\n".join(str(warning.message) for warning in recwarn))
    assert "Traceback" not in found.err
    assert code == 2 if command in FAIL else code in (0, 1), found.err
    assert ("error: " in found.err) == (code == 2)
    if command.startswith("report"):
        html = places["OUT.html"].read_text(encoding="utf-8")
        assert code == 0 and ":skull:" in html


def test_scores_on_standard_output_are_exact(hostile, capsys):
    """They are data: JSON escapes control characters by itself."""
    rows = (hostile / f"{NAME}.jsonl").read_text().splitlines()
    assert main(["score", str(hostile / NAME), str(hostile / f"{NAME}.jsonl")]) in (0, 2)
    scored = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [{k: v for k, v in row.items() if "reward" not in k} for row in scored] == [json.loads(r) for r in rows]


def test_scores_on_standard_output_steer_no_terminal(trained, tmp_path, capsys):
    """JSON leaves C1 control characters as they are, and some terminals obey them."""
    text = "w1 \x9b2J \x7f \u202e w2"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert main(["score", str(trained), str(tmp_path / "rows.jsonl")]) == 0
    out = capsys.readouterr().out
    assert not STEERS.search(out) and json.loads(out)["text"] == text


def test_html_is_escaped(trained, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(trained, model)
    config = json.loads((model / "config.json").read_text())
    script = "<img src=x onerror=alert(1)>\"'"
    config["latents"] = [latent | {"label": script} for latent in config["latents"]]
    config["sae_source"] = {"neuronpedia_id": script, "source": script}
    config["base_model_name_or_path"] = script
    (model / "config.json").write_text(json.dumps(config))
    assert main(["report", str(model), "--output", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;&#34;&#39;" in html


def test_log_lines_are_text(hostile, trained, tmp_path):
    rows = tmp_path / f"{NAME}.jsonl"
    rows.write_text('{"text": "w1 w2"}\n')
    command = [sys.executable, "-m", "sparserm_hf.cli", "score", str(trained), str(rows)]
    run = subprocess.run(command, capture_output=True)
    assert run.returncode == 0 and b"is plain text" in run.stderr
    lines = [line for line in run.stderr.decode().split("\n") if "is plain text" in line]
    check("\n".join(lines))


def test_what_is_shown():
    assert visible("a\x1b[2J\x00\x7f\x85\u202eb\n") == "a\u241b[2J\u2400\u2421\ufffd\ufffdb\n"
    assert visible("Größe, 你好, 🙂, e\u0301") == "Größe, 你好, 🙂, e\u0301"
    assert one_line("one\nsparserm: error: two\x85three") == "one sparserm: error: two three"
    record = logging.LogRecord("x", logging.INFO, "x", 1, "%s", (HOSTILE,), None)
    check(VisibleFormatter("%(message)s").format(record))


def test_all_text_goes_through_one_module():
    """Where text is printed in another way, nothing makes it visible."""
    source = Path(__file__).parent.parent / "src" / "sparserm_hf"
    for path in source.rglob("*.py"):
        if path.name not in ("terminal.py", "template_process.py"):
            text = path.read_text()
            assert "from rich.console import" not in text, path
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            printed = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "print"]
            assert all("json.dumps" in call or call.startswith("print('sparserm: ") for call in printed), path
