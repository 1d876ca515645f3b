"""The examples of README, manual and docstrings run in the order in which they are written."""

import ast
import doctest
import importlib
import inspect
import json
import re
import shlex
import shutil
import sys
import textwrap
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import trl

import sparserm_hf
from sparserm_hf.cli import main
from sparserm_hf.sae import measuring as sae_measuring

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if re.search("```(python|bash)", path.read_text())
)
TOUR = ROOT / "examples" / "tour.ipynb"
CELLS = [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]
BLOCK = re.compile(r"^( *)```(python|bash)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# Tested elsewhere: these install something, run for ever, or take minutes.
ELSEWHERE = ("pip ", "make ", "rewardbench ", "python -m scripts")
ELSEWHERE += ("sparserm serve", "sparserm align", "sparserm label", "sparserm demo")
NOT_RUN = {"ray", "--describe_with", *([] if find_spec("bitsandbytes") else ["--quantization"])}
FILES = sorted(path for folder in ("src", "modeling", "hub_cards") for path in (ROOT / folder).rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT).with_suffix("").parts)
    for path in FILES
    if ">>> " in path.read_text()
]
PUBLIC = [name for name in sparserm_hf.__all__ if name not in ("PRESETS", "__version__")]


@pytest.fixture(scope="session")
def documented(tmp_path_factory):
    from documented import write_documented

    return write_documented(tmp_path_factory.mktemp("documented"))


@pytest.fixture
def here(documented, tmp_path, monkeypatch):
    """A copy of that folder, as the working directory."""
    folder = tmp_path / "here"
    shutil.copytree(documented, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(trl, "GRPOConfig", partial(trl.GRPOConfig, use_cpu=True, bf16=False))
    monkeypatch.setattr(
        sae_measuring, "judge", lambda *_: sae_measuring.Verdict(True, "The SAE fits.")
    )  # it is a random one
    return folder


def known_to(folder, text):
    """An example with what a tiny model has in the place of what the document names."""
    latent = json.loads((folder / "my-reward-model" / "config.json").read_text())["latents"][0]["id"]
    text = text.replace('135M-Instruct", None', '135M-Instruct", "my-sae"')
    text = text.replace('model="HuggingFaceTB/', 'sae="my-sae", model="HuggingFaceTB/')
    text = text.replace("--model HuggingFaceTB/", "--sae my-sae --model HuggingFaceTB/")
    return text.replace("1646", str(latent)).replace("--layer 12", "--layer 2 --total_tokens 4096 --d_sae 64 --k 8")


def commands(block):
    """The commands of a block, without comments."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_the_examples_of_a_document_run(document, here):
    namespace = {}
    for indent, language, block in BLOCK.findall(document.read_text()):
        block = known_to(here, re.sub(f"^{indent}", "", block, flags=re.MULTILINE))
        if language == "python":
            exec(compile(block, document.name, "exec"), namespace)
            continue
        for command in commands(block):
            if " ".join(command).startswith(ELSEWHERE) or NOT_RUN & set(command):
                continue
            if command[0] == "echo":
                Path(command[3]).write_text(command[1])
                continue
            assert command[0] == "sparserm", command
            if "--output_dir" in command:  # the document writes it anew
                shutil.rmtree(command[command.index("--output_dir") + 1], ignore_errors=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert main(command[1:]) in (0, 1), command  # 1: `sae check` and `monitor` say that something is off


def saved(cell, kind):
    """The saved output of a cell: `text` is what it printed, `text/plain` and `text/html` are its last value."""
    return "".join("".join(output.get("data", output).get(kind, "")) for output in cell["outputs"])


def words(text):
    return re.findall("[A-Za-z]+", text)


def test_the_tour_runs_and_shows_as_much_as_is_saved(here, monkeypatch, capsys):
    (here / "examples").mkdir()  # a notebook runs in its own folder
    for name in ("HuggingFaceTB", "my-sae"):
        (here / "examples" / name).symlink_to(here / name)
    monkeypatch.chdir(here / "examples")
    namespace = {}
    for cell in CELLS:
        values = [None]
        monkeypatch.setattr(sys, "displayhook", values.append)
        tree = ast.Interactive(ast.parse(known_to(here, "".join(cell["source"]))).body)
        exec(compile(tree, cell["id"], "single"), namespace)
        last = values[-1]
        assert bool(capsys.readouterr().out) == bool(saved(cell, "text")), cell["id"]
        assert (last is not None) == bool(saved(cell, "text/plain")), cell["id"]
        assert hasattr(last, "_repr_html_") == bool(saved(cell, "text/html")), cell["id"]
        if isinstance(last, sparserm_hf.Evaluation | sparserm_hf.Comparison):
            assert words(repr(last)) == words(saved(cell, "text/plain")), cell["id"]


def test_the_outputs_of_the_tour_are_whole_and_clean():
    """All cells ran, in order, and no output is an error, a progress bar or a path of somebody's machine."""
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    kinds = {(output["output_type"], output.get("name")) for cell in CELLS for output in cell["outputs"]}
    assert kinds == {("execute_result", None), ("stream", "stdout")}
    for cell in CELLS:
        for kind in ("text", "text/plain", "text/html"):
            assert not re.search(r"(?<![\w.<])/\w", saved(cell, kind)), cell["id"]
    assert TOUR.stat().st_size < 200_000


def test_links_lead_somewhere_on_github():
    """In the built manual, `make docs` checks them. Pages that it makes are not on GitHub, and were linked there."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", TOUR, *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in documents for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert len(links) > 100
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("module", [name.replace("sparserm_hf.__init__", "sparserm_hf") for name in MODULES])
def test_the_examples_of_docstrings_run(module, here):
    name = module if module.startswith("sparserm_hf") else f"sparserm_hf.{module}"
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_an_example(name, here):
    """Those of `>>>` run with their module; those in a block, which need more around them, run here."""
    docstring = inspect.getdoc(getattr(sparserm_hf, name)) or ""
    blocks = BLOCK.findall(docstring)
    assert ">>> " in docstring or blocks
    for _, _, block in blocks:
        exec(compile(textwrap.dedent(block), name, "exec"), {})
