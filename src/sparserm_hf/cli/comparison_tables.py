"""Comparisons of two reward models in the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.padding import Padding

from ..explanations import Comparison, Disagreement, ExplainedPair
from ..runtime import Console
from .evaluation_tables import accuracy_table, add_accuracy, print_by_length

SHOWN_CHARACTERS = 300  # of a prompt or a response
SHOWN_LATENTS = 3  # of a pair, for each model
LEFT_OUT = "a response is empty or too long for a model, or both texts are the same"


def print_comparison(comparison: Comparison, data: str) -> None:
    """Print the accuracies of two reward models, their difference, and the strongest disagreements.

    Args:
        comparison: The comparison.
        data: Name of the preference pairs.
    """
    console, names = Console(), comparison.names
    table = accuracy_table(f"{names[0]} against {names[1]} on {data}, {comparison.pairs} pairs")
    for name, metrics in zip(names, comparison.metrics, strict=True):
        add_accuracy(table, name, metrics)
    difference = comparison.difference
    table.add_section()
    table.add_row("difference", f"{100 * difference.mean:+.1f}", str(difference).partition(" (")[2].rstrip(")"))
    console.print(table)
    print_by_length(comparison.by_length, zip(names, comparison.margins, strict=True))
    if comparison.left_out:
        console.print(f"Rows left out: {comparison.left_out} ({LEFT_OUT}).")
    console.print(
        f"The reward differences correlate by {comparison.correlation:+.2f}. The models prefer different responses on "
        f"{len(comparison.disagreeing)} of {comparison.pairs} pairs."
    )
    if comparison.disagreements:
        console.print(
            f"\n[bold]The {len(comparison.disagreements)} strongest disagreements[/], with the latents that add most "
            "to the reward difference, chosen minus rejected"
        )
    for pair in comparison.disagreements:
        _print_disagreement(console, pair, names)


def _print_disagreement(console: Console, pair: Disagreement, names: tuple[str, str]) -> None:
    console.print(f"\n[bold]Row {pair.row}[/]")
    prompt, chosen, rejected = (" ".join(text.split()) for text in (pair.prompt, pair.chosen, pair.rejected))
    if len(prompt) > SHOWN_CHARACTERS:
        prompt = f"...{prompt[-SHOWN_CHARACTERS:]}"
    for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if name != "prompt" and len(text) > SHOWN_CHARACTERS:
            text = f"{text[:SHOWN_CHARACTERS]}..."
        console.print(Padding(f"[dim]{name}:[/] {escape(text)}", (0, 0, 0, 2), expand=False))
    for name, margin, deviation, explained in zip(
        names, pair.margins, pair.deviations, pair.explanations, strict=True
    ):
        prefers = "chosen" if margin > 0 else "rejected"
        told = f"{escape(name)} prefers {prefers}: {margin:+.3f}, {deviation:+.1f} standard deviations"
        console.print(Padding(told, (0, 0, 0, 2), expand=False))
        console.print(Padding(_explanation(explained), (0, 0, 0, 6), expand=False))


def _explanation(explained: ExplainedPair | None) -> str:
    """List the latents that add most to a reward difference, each on its own line."""
    if explained is None:
        return "[dim]no explanation: not a SparseRM[/]"
    return "\n".join(
        f"{difference:+.3f} {f'{escape(effect.name)} ' if effect.name else ''}[dim](latent {effect.latent})[/]"
        for effect, _, difference in explained.latents[:SHOWN_LATENTS]
    )
