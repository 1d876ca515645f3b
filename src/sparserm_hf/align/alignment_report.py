"""The report of an alignment run: a table of figures, pictures, and answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation import paired_difference
from ..runtime import replacing_file
from .aligner import IterativeAligner
from .arms import FIRST, SPARSERM, Outcome
from .round_figures import SHARES, draw_rounds
from .round_files import read_rows, write_json

SAMPLES = 8
COLUMNS = {
    "reward": "reward",
    "kl": "KL",
    "tokens": "tokens",
    "alike": "alike %",
    "outside": "outside %",
    "preference_accuracy": "preference %",
    "mc1": "MC1 %",
    "mc2": "MC2 %",
}


def change_cell(after: Sequence[float], before: Sequence[float]) -> str:
    """Format the change of a mean over the same items, in points, with its 95% interval; see `paired_difference`.

    Example:
        >>> change_cell([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0])
        '+25.0 ± 79.6'
    """
    change = paired_difference(np.array(after), np.array(before))
    return f"{100 * change.mean:+.1f}" + ("" if change.half is None else f" ± {100 * change.half:.1f}")


def cells(figures: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Format the figures of a policy; MC1 and MC2 with their change since the first policy and its 95% interval."""
    found = []
    for name in COLUMNS:
        if name not in first:
            continue
        factor = 100 if name in SHARES else 1
        text = f"{factor * figures[name]:.{2 if name == 'reward' else 1}f}"
        each = f"each_{name}"
        if each in figures and figures is not first:
            text += f" ({change_cell(figures[each], first[each])})"
        found.append(text)
    return found


def outcome_table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of a run; the first policy is the first row."""
    first = outcome.first
    header = ["filter", "round", "kept", *(title for name, title in COLUMNS.items() if name in first)]
    rows = [[FIRST, "", "", *cells(first, first)]]
    for arm, rounds in outcome.rounds.items():
        for figures in rounds:
            number = f"{figures['round']}{' (stopped)' if figures['stopped'] else ''}"
            rows.append([arm, number, f"{figures['kept']} of {figures['pairs']}", *cells(figures, first)])
    return header, rows


def write_alignment_report(aligner: IterativeAligner, outcome: Outcome) -> Path:
    """Write `results.json`, `rounds.png` and `report.md` into the folder of a run.

    Args:
        aligner: The aligner that ran.
        outcome: The result of its `run`.

    Returns:
        Path of `report.md`.

    Example:
        ```python
        from sparserm_hf import AlignmentConfig, IterativeAligner, write_alignment_report

        config = AlignmentConfig("aligned", num_rounds=1, held_out_questions=2, max_new_tokens=8)
        questions = [{"question": f"Is {n} a prime number?"} for n in range(20)]
        aligner = IterativeAligner("my-policy", "my-reward-model", config, questions)
        write_alignment_report(aligner, aligner.run())
        ```
    """
    folder = aligner.folder
    write_json(folder / "results.json", {"first": outcome.first, "rounds": outcome.rounds, "best": outcome.best})
    draw_rounds(outcome.first, outcome.rounds, folder / "rounds.png")
    header, rows = outcome_table(outcome)
    lines = [
        f"# {Path(aligner.policy).name}, aligned\n",
        *markdown(header, rows),
        "\n![figures by round](rounds.png)\n",
    ]
    numbers = [figures["round"] for figures in outcome.rounds[SPARSERM]]
    for number in numbers:
        lines.append(f"![rewards before round {number}](sparserm/round-{number}/rewards.png)")
    lines += ["\n## Answers to held-out questions\n", *_samples(folder, numbers)]
    path = folder / "report.md"
    with replacing_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table.

    Example:
        >>> markdown(["name", "reward"], [["a", "1"]])
        ['| name | reward |', '| --- | --- |', '| a | 1 |']
    """
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _samples(folder: Path, numbers: Sequence[int]) -> list[str]:
    policies = {FIRST: read_rows(folder / "first" / "answers.jsonl")}
    policies |= {f"round {n}": read_rows(folder / "sparserm" / f"round-{n}" / "answers.jsonl") for n in numbers}
    lines = []
    for answers in list(zip(*policies.values(), strict=True))[:SAMPLES]:
        lines += [f"**{_one_line(answers[0]['prompt'][-1]['content'])}**\n"]
        lines += markdown(
            ["", "reward", "answer"],
            [
                [name, f"{answer['reward']:.2f}", _one_line(answer["response"])]
                for name, answer in zip(policies, answers, strict=True)
            ],
        )
        lines.append("")
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
