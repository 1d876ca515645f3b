"""The commands of `sparserm`: their help, their options, and how little is imported to show them."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from sparserm_hf.cli.arguments import add_settings, given
from sparserm_hf.cli.main import COMMANDS, build_parser, main

EXTRAS = ("peft", "trl", "gguf", "openai", "captum", "bitsandbytes", "ray", "fastapi", "prometheus_client", "uvicorn")
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "sklearn", "scipy", "sae_lens", "trl")


def test_help_imports_nothing_heavy():
    code = f"""
import sys
from sparserm_hf.cli import main
try:
    main(["--help"])
except SystemExit as end:
    print(end.code, sorted(set({HEAVY}) & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"
    assert all(f"    {name.split()[0]} " in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_describes_itself(command, capsys):
    """With an example that parses, and no option twice."""
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and COMMANDS[command] in shown
    listed = re.findall(r"^  (-?-?\w+)", shown.partition("show this help message")[2], flags=re.MULTILINE)
    assert listed and len(listed) == len(set(listed))
    example = shown.partition("\nexample:\n")[2].replace("\\\n", " ").split()
    assert example[: 1 + len(command.split())] == ["sparserm", *command.split()]
    build_parser(example[1:]).parse_args(example[1:])


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "serve"])
def test_each_command_ends_with_what_to_do_next(command, monkeypatch, capsys):
    """With a command line that parses; a name with a space in it is quoted."""
    module = importlib.import_module(f"sparserm_hf.cli.{command.replace(' ', '_')}")
    example = module.EXAMPLE.replace("\\\n", " ").split()[1:]
    monkeypatch.setattr(module, "run", lambda args: None)
    assert main([*example, "--output_dir", "my folder"] if "--output_dir" in example else example) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    named, _, line = said.partition(": sparserm ")
    assert named.startswith("To ") and "{" not in said
    if line:
        build_parser(shlex.split(line)).parse_args(shlex.split(line.replace("LATENT=0", "1=0")))
    else:
        assert ".from_pretrained with 'my folder'" in said


def test_help_needs_no_extra():
    """That of `sparserm label` ended in a traceback without fastapi, and so did the manual after `make demo`."""
    code = f"""
import sys
from importlib.abc import MetaPathFinder
from sparserm_hf.cli.main import COMMANDS, main

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for command in COMMANDS:
    try:
        raise SystemExit(main([*command.split(), "--help"]))
    except SystemExit as end:
        assert end.code == 0, command
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.count("\nexample:\n") == len(COMMANDS), run.stderr[-2000:]


def test_commands_of_a_group_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["sae", "--help"])
    shown = capsys.readouterr().out
    assert all(f"    {name} " in shown for name in ("check", "find", "train"))
    errors = {"sae": "required: COMMAND", "sae fnd": "invalid choice: 'fnd'", "": "required: COMMAND"}
    for command, error in errors.items():
        with pytest.raises(SystemExit) as end:
            main(command.split())
        assert end.value.code == 2 and error in capsys.readouterr().err


def test_options_are_made_of_the_fields_of_a_dataclass(capsys):
    @dataclass
    class Settings:
        folder: str = field(metadata={"help": "Folder, 100% ours."})
        k: int | str = field(default="auto", metadata={"help": "Number."})
        layer: int | None = field(default=None, metadata={"help": "Layer."})
        loss: Literal["margin", "bce"] = field(default="margin", metadata={"help": "Loss."})
        check: bool = field(default=True, metadata={"help": "Check.", "off": "Do not check."})
        slim: bool = field(default=False, metadata={"help": "Slim."})

    parser = argparse.ArgumentParser(prog="x")
    groups = {"method": ("k", "layer", "loss"), "output": ("folder", "slim", "check")}
    add_settings(parser, Settings, groups)
    assert given(Settings, parser.parse_args(["--folder", "x"])) == Settings("x")
    arguments = ["--folder", "x", "--k", "4", "--layer", "3", "--loss", "bce", "--no_check", "--slim"]
    assert given(Settings, parser.parse_args(arguments)) == Settings("x", "4", 3, "bce", False, True)
    before = ["--folder", "x", "--check", "False", "--slim", "True"]  # as HfArgumentParser takes them
    assert given(Settings, parser.parse_args(before)) == Settings("x", check=False, slim=True)
    parser.print_help()
    shown = capsys.readouterr().out
    assert "Do not check." in shown and "  Check." not in shown and "100% ours." in shown
    assert "Number. (default: auto)" in shown and "Layer.\n" in shown
    assert shown.index("method:") < shown.index("--loss {margin,bce} ") < shown.index("output:")
    with pytest.raises(KeyError, match="Settings has fields in no group: folder, check, slim"):
        add_settings(argparse.ArgumentParser(), Settings, {"method": groups["method"]})


def test_options_may_be_written_with_dashes(capsys):
    """As TRL's commands take them; a value keeps its own."""
    assert main(["sae", "check", "--dataset-split", "train", "--dataset=my-pairs"]) == 2
    assert "No base model is given" in capsys.readouterr().err
