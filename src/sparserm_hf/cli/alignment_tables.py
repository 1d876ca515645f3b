"""Alignment runs as tables in the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from ..align import Outcome, outcome_table
from ..runtime import Console, say

# A warning is printed if more than this share of the answers is cut, or begins with the same two words. A collapsed
# policy of 135M parameters had a share of 0.73.
MOSTLY = 0.5


def print_outcome(outcome: Outcome, title: str) -> None:
    """Print the figures of each round, why an arm ended early, and the adapter that is kept."""
    header, rows = outcome_table(outcome)
    table = Table(title=escape(title))
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number > 1 else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for arm, why in outcome.ended.items():
        say(f"{arm} ended early, {why}.")
    kept = outcome.kept
    if kept is None:
        say("No round came to its end: there is no adapter to keep.")
        return
    say(f"Kept round {outcome.best}, whose answers SparseRM rewards most: {outcome.adapter}.")
    if kept["reward"] <= outcome.first["reward"]:
        say("Their mean reward is no higher than that of the first policy's answers.")
    if kept["cut"] > MOSTLY:
        say(f"{kept['cut']:.0%} of them are cut at max_new_tokens: whether they grew longer cannot be seen.")
    if kept.get("alike", 0) > max(MOSTLY, outcome.first.get("alike", 0)):
        say(f"{kept['alike']:.0%} of them begin with the same two words: read them in report.md.")
