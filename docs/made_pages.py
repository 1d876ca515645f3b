"""Make the manual's page of commands out of their help, and its tour out of the notebook."""

import html
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PYTHON = os.environ.get("SPARSERM_PYTHON", sys.executable)  # an environment in which the package runs
HELP = """
from sparserm_hf.cli.main import COMMANDS, main
for name in COMMANDS:  # in one process, as each takes seconds to start
    print(end="\\0" + name + "\\n")
    try:
        raise SystemExit(main([*name.split(), "--help"]))
    except SystemExit as end:
        assert end.code == 0, name
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the two pages."""
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "tour.md", content=tour()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead to the manual's tour where GitHub leads to the notebook."""
    return markdown.replace("](../examples/tour.ipynb)", "](tour.md)")


def commands() -> str:
    """Write the help of each command under a heading of its own."""
    environment = os.environ | {"COLUMNS": "100"}
    shown = subprocess.run([PYTHON, "-c", HELP], env=environment, capture_output=True, text=True, check=True).stdout
    parts = (part.partition("\n") for part in shown.split("\0")[1:])
    return "\n".join(["# Command line\n", *(f"## sparserm {n}\n\n```text\n{h.rstrip()}\n```\n" for n, _, h in parts)])


def tour() -> str:
    """Write the cells of the notebook with the outputs that are saved in it."""
    parts = []
    for cell in json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(
            source.replace("](../docs/", "](") if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        )
        if outputs := cell.get("outputs"):
            shown = "\n".join(map(as_html, outputs))
            parts.append(f'<div class="result">\n{shown}\n</div>')
    return "\n\n".join(parts)


def as_html(output: dict[str, Any]) -> str:
    """Show an output of a cell as its own HTML, or as text."""
    data = output.get("data") or {"text/plain": output["text"]}
    if "text/html" in data:
        return f'<div style="margin: .8em 0">{"".join(data["text/html"])}</div>'
    text = html.escape("".join(data["text/plain"]).rstrip())
    return f'<pre style="font-size: .85em; white-space: pre-wrap">{text}</pre>'
