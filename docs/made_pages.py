"""Make the manual's page of commands out of their help."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PYTHON = os.environ.get("SPARSERM_PYTHON", sys.executable)  # an environment in which the package runs


def on_files(files: Files, config: Any) -> Files:
    """Add the page."""
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def commands() -> str:
    """Write the help of each command under a heading of its own."""
    code = "from sparserm_hf.cli.main import COMMANDS; print(*COMMANDS, sep='\\n')"
    parts = ["# Command line\n"]
    for name in run("-c", code).splitlines():
        shown = run("-m", "sparserm_hf.cli", *name.split(), "--help")
        parts.append(f"## sparserm {name}\n\n```text\n{shown.rstrip()}\n```\n")
    return "\n".join(parts)


def run(*arguments: str) -> str:
    """Run Python and return its standard output."""
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run([PYTHON, *arguments], env=environment, capture_output=True, text=True, check=True).stdout
