"""The package as a reader meets it: floors, files, functions, the public API, and how long importing takes.

    python benchmarks/house.py . [OTHER_CHECKOUT ...]

A column for each checkout. A floor is a room, or a loose module, above all that it imports from. Times are the
median of five processes; each import is shown as a ratio to the import of transformers' own classes, measured in
turns with it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

RUNS = 5
TRANSFORMERS = "from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel"
# An editable install may name another checkout: here it is the one that is measured.
HERE = """
import sys
from importlib.util import spec_from_file_location

class Here:
    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, folder = name.partition(".")
        if package == "sparserm_hf" and folder in ("modeling", "hub_cards"):
            return spec_from_file_location(name, {root!r} + f"/{{folder}}/__init__.py")

sys.meta_path = [Here, *(finder for finder in sys.meta_path if "editable" not in str(finder).lower())]
sys.path.insert(0, {source!r})
"""
HELP = "import sys; sys.argv[1:] = ['--help']; from sparserm_hf.cli import main; main()"


def files(root: Path) -> list[Path]:
    """The Python files of the package, of the model and of the cards."""
    return sorted(path for folder in ("src", "modeling", "hub_cards") for path in (root / folder).rglob("*.py"))


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(root: Path) -> Iterator[tuple[int, str]]:
    """Lines and name of each function."""
    for path in files(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield (node.end_lineno or 0) - node.lineno + 1, node.name


def imports(root: Path) -> dict[str, set[str]]:
    """The rooms and loose modules that each of them imports from."""
    package, found = root / "src" / "sparserm_hf", {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue
        known = found.setdefault(parts[0], set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == len(parts):
                names = [node.module] if node.module else [alias.name for alias in node.names]
                known |= {str(name).split(".")[0] for name in names} - {parts[0]}
    return found


def floors(root: Path) -> int:
    """How many rooms stand on each other."""
    imported = imports(root)

    @cache
    def floor(room: str) -> int:
        return 1 + max(map(floor, imported.get(room, ())), default=0)

    return max(map(floor, imported))


def public_names(root: Path) -> list[str]:
    """What `from sparserm_hf import ...` offers."""
    package = root / "src" / "sparserm_hf"
    stub = package / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else package / "__init__.py").read_text())
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    return sorted(alias.asname or alias.name for node in imported for alias in node.names)


def with_example(root: Path, names: list[str]) -> int:
    """How many of some names have an example in their docstring."""
    documented = set()
    for path in files(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                docstring = ast.get_docstring(node) or ""
                documented |= {node.name} if ">>>" in docstring or "```" in docstring else set()
    return len(documented & set(names))


def seconds(root: Path, code: str) -> float:
    given = HERE.format(source=str(root / "src"), root=str(root)) if "sparserm" in code else ""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", given + code], capture_output=True, check=True)
    return time.perf_counter() - started


def measure(root: Path) -> dict[str, str]:
    """The rows of the table."""
    package = root / "src" / "sparserm_hf"
    sizes = {path: length(path) for path in files(root)}
    largest = max(sizes, key=lambda path: sizes[path])
    longest = max(functions(root))
    names = public_names(root)
    times = [[seconds(root, code) for code in (TRANSFORMERS, "import sparserm_hf", HELP)] for _ in range(RUNS)]
    reference, own, helped = (median(column) for column in zip(*times, strict=True))
    rooms = sorted(path for path in package.iterdir() if any(path.glob("*.py")))
    lines = {room.name: sum(length(path) for path in room.rglob("*.py")) for room in rooms}
    loose = [path for path in package.glob("*.py") if path.stem != "__init__"]
    return {
        "floors": str(floors(root)),
        "loose modules": str(len(loose)),
        "largest file": f"{largest.name}, {sizes[largest]} lines",
        "largest function": f"{longest[1]}, {longest[0]} lines",
        "public names": f"{len(names)}, {with_example(root, names)} with an example",
        "import, of transformers' classes": f"{own / reference:.2f} ({own:.1f} s of {reference:.1f} s)",
        "`sparserm --help`": f"{helped:.1f} s",
        "lines": f"{sum(sizes.values()):,}",
        "lines by room": ", ".join(f"{name} {count:,}" for name, count in lines.items()),
    }


def main() -> None:
    columns = [measure(Path(root).resolve()) for root in sys.argv[1:]]
    print(f"| | {' | '.join(sys.argv[1:])} |\n|---|{'---|' * len(columns)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
