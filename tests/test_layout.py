"""What may import what, and what travels to the Hub."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from tiny import tiny_reward_model

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "sparserm_hf"

# The rooms of the package, from the ground up: each may import those on lower floors.
FLOORS = [
    {"runtime", "modeling", "hub_cards"},
    {"conversations", "base_models"},
    {"representations", "sae", "scoring"},
    {"evaluation"},
    {"training", "explanations", "monitoring"},
    {"integrations", "server", "align"},
    {"labelling"},
    {"cli"},
]
LEAVES = {"explanations", "monitoring", "integrations", "server", "align", "labelling", "cli"}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def test_what_travels_imports_torch_transformers_and_its_siblings_only():
    for path in (ROOT / "modeling").glob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path) if not name.startswith(".")}
        assert roots <= {
            "collections",
            "copy",
            "dataclasses",
            "inspect",
            "json",
            "re",
            "typing",
            "torch",
            "transformers",
        }, path.name
        siblings = {name[1:] for name in imported_modules(path) if name.startswith(".")}
        assert all((ROOT / "modeling" / f"{name}.py").is_file() for name in siblings), path.name


def test_each_file_imports_directly_whatever_its_siblings_import():
    """transformers 4 copies only what a file itself imports out of a local folder: what that imports was not found."""

    def siblings(name: str) -> set[str]:
        return {n[1:] for n in imported_modules(ROOT / "modeling" / f"{name}.py") if n.startswith(".")}

    for name in ("configuration_sparserm", "modeling_sparserm"):  # those that `auto_map` names
        assert {further for direct in siblings(name) for further in siblings(direct)} <= siblings(name)


def test_no_docstring_line_looks_like_a_relative_import():
    """transformers finds relative imports by a regular expression: such a line in a docstring crashes saving."""
    for path in (ROOT / "modeling").glob("*.py"):
        found = re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(), flags=re.MULTILINE)
        assert {f".{name}" for name in found} == {n for n in imported_modules(path) if n.startswith(".")}


def rooms_imported(path: Path) -> set[str]:
    """The other rooms that a file of the package imports from."""
    room, *rest = path.relative_to(PACKAGE).with_suffix("").parts
    names = {name for name in imported_modules(path) if len(name) - len(name.lstrip(".")) > len(rest)}
    return {name.lstrip(".").split(".")[0] for name in names} - {room}


def test_everything_lives_in_a_room():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "__init__.pyi", "py.typed"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set().union(*FLOORS) - {"modeling", "hub_cards"}


def test_imports_point_one_way():
    floor_of = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    for path in PACKAGE.glob("*/**/*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for imported in rooms_imported(path):
            assert floor_of[imported] < floor_of[room], f"{path.relative_to(PACKAGE)} imports {imported}"


def test_leaves_can_be_deleted():
    """Nothing but other leaves imports them."""
    for path in PACKAGE.glob("*/**/*.py"):
        if path.relative_to(PACKAGE).parts[0] not in LEAVES:
            assert not rooms_imported(path) & LEAVES, path


def test_rooms_import_from_each_other_what_these_export():
    """`from ..room import name`, never from a file inside another room."""
    for path in PACKAGE.glob("*/**/*.py"):
        depth = len(path.relative_to(PACKAGE).parts)
        outside = [name.lstrip(".") for name in imported_modules(path) if len(name) - len(name.lstrip(".")) == depth]
        assert all("." not in name or name.startswith(("modeling.", "hub_cards.")) for name in outside), path


def test_no_two_files_have_one_name():
    """A name tells one place; in `cli`, a file is named after its command."""
    names = [path.name for path in PACKAGE.glob("*/**/*.py") if path.parent.name != "cli" and path.name[0] != "_"]
    assert sorted(names) == sorted(set(names))


def test_sae_lens_is_imported_only_where_an_sae_is_loaded_or_trained():
    for path in PACKAGE.rglob("*.py"):
        top_level = {n for node in ast.parse(path.read_text()).body for n in _names(node)}
        assert not any(name.startswith("sae_lens") for name in top_level), path
        if any(name.startswith("sae_lens") for name in imported_modules(path)):
            assert "sae" in path.relative_to(PACKAGE).parts or path.name == "private_apis.py"
    code = "import sys, sparserm_hf.cli; sys.exit('sae_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {"." * node.level + (node.module or "")}
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()


def test_the_code_travels_byte_for_byte(tmp_path):
    tiny_reward_model().save_pretrained(tmp_path)
    code = {path.name: path.read_bytes() for path in (ROOT / "modeling").glob("*_sparserm.py")}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.py")} == code


def test_float64_is_only_on_the_cpu():
    """Apple's GPUs have none: with `.double()` in six files every `sparserm score` failed there."""
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "modeling").glob("*.py")):
        if path.name != "devices.py":
            assert not re.search(r"\.double\(\)|torch\.(float64|double)", path.read_text()), path


SOURCES = [p for folder in (PACKAGE, ROOT / "modeling", ROOT / "hub_cards") for p in sorted(folder.rglob("*.py"))]


def test_files_and_functions_stay_readable():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path}: {node.name}"


def test_docstrings_open_with_an_imperative_or_a_noun():
    """ "What X makes of Y" has to be read twice."""
    opening = re.compile(r"(What|How|Whether|Where|Which|Those|That of|The same)\b")
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                assert not opening.match(ast.get_docstring(node) or ""), f"{path}: {ast.get_docstring(node)}"
