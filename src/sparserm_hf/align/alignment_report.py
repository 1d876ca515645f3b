"""A run as a table, in the terminal and as Markdown, with pictures and answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from ..runtime import Console, replacing_file, say
from .aligner import FIRST, SPARSERM, IterativeAligner, Outcome
from .round_figures import SHARES, draw_rounds
from .round_files import read_rows, write_json

SAMPLES = 8
# Share of answers that are cut, or begin alike, at which it is said; 0.73 began alike where a policy of 135M
# parameters had one opening left.
MOSTLY = 0.5
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


def difference(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """How much a mean over the same items changed, and half of its 95% interval (normal, paired)."""
    changes = np.array(after) - np.array(before)
    return float(changes.mean()), float(1.96 * changes.std(ddof=1) / np.sqrt(len(changes)))


def cells(figures: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """The figures of a policy; those of TruthfulQA with the change since the first and its 95% interval."""
    found = []
    for name in COLUMNS:
        if name not in first:
            continue
        factor = 100 if name in SHARES else 1
        text = f"{factor * figures[name]:.{2 if name == 'reward' else 1}f}"
        each = f"each_{name}"
        if each in figures and figures is not first:
            change, half = difference(figures[each], first[each])
            text += f" ({100 * change:+.1f} ± {100 * half:.1f})"
        found.append(text)
    return found


def table(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Header and rows, the first policy on top."""
    first = outcome.first
    header = ["filter", "round", "kept", *(title for name, title in COLUMNS.items() if name in first)]
    rows = [[FIRST, "", "", *cells(first, first)]]
    for arm, rounds in outcome.rounds.items():
        for figures in rounds:
            number = f"{figures['round']}{' (stopped)' if figures['stopped'] else ''}"
            rows.append([arm, number, f"{figures['kept']} of {figures['pairs']}", *cells(figures, first)])
    return header, rows


def print_outcome(outcome: Outcome, title: str) -> None:
    """Print the table, and say why arms were stopped and which adapter is kept."""
    header, rows = table(outcome)
    printed = Table(title=escape(title))
    for number, column in enumerate(header):
        printed.add_column(column, justify="right" if number > 1 else "left")
    for row in rows:
        printed.add_row(*row)
    Console().print(printed)
    for arm, why in outcome.ended.items():
        say(f"{arm} ended early, {why}.")
    if outcome.adapter is None:
        say("No round came to its end: there is no adapter to keep.")
    else:
        say(f"Kept round {outcome.best}, whose answers SparseRM rewards most: {outcome.adapter}.")
        kept = outcome.rounds[SPARSERM][outcome.best - 1]  # type: ignore[operator]
        if kept["reward"] <= outcome.first["reward"]:
            say("It rewards them no more than the first policy's.")
        if kept["cut"] > MOSTLY:
            say(f"{kept['cut']:.0%} of them are cut at max_new_tokens: whether they grew longer cannot be seen.")
        if kept.get("alike", 0) > max(MOSTLY, outcome.first.get("alike", 0)):
            say(f"{kept['alike']:.0%} of them begin with the same two words: read them in report.md.")


def write_report(aligner: IterativeAligner, outcome: Outcome) -> Path:
    """Write `results.json`, `rounds.png` and `report.md` into the folder of the run; returns the latter's path."""
    folder = aligner.folder
    write_json(folder / "results.json", {"first": outcome.first, "rounds": outcome.rounds, "best": outcome.best})
    draw_rounds(outcome.first, outcome.rounds, folder / "rounds.png")
    header, rows = table(outcome)
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
    """The lines of a Markdown table."""
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
