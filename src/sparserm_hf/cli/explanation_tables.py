"""Explanations in the terminal: tables of latents, responses with their tokens coloured."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text as Line

from ..explanations import LatentEffect, LatentReport, TextExplanation, TokenEffect, contrast
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import Console, visible

NAMED = "F1: how well the name predicts where the latent fires, on held-out responses."
LEGEND = (
    "A latent adds to a reward by being stronger or weaker in the response than in the average training response. "
    "=: removing that difference from the tokens changed the reward by that amount, to within 10%; ≠: by the amount "
    "that is shown instead. "
    f"{NAMED} Tokens on green raise the reward, tokens on red lower it."
)

UP, DOWN = (34, 160, 90), (210, 70, 70)  # backgrounds of tokens that raise and that lower the reward


def print_explanation(explained: dict[str, TextExplanation], config: SparseRMConfig, title: str, top: int) -> None:
    """Print which latents and tokens made the reward of a row, or both rewards of a pair.

    Args:
        explained: Explanation of a text, or of the chosen and of the rejected response of a pair.
        config: Configuration of the reward model.
        title: Name of the row.
        top: Number of latents to show.
    """
    console = Console()
    if len(explained) == 1:
        (explanation,) = explained.values()
        console.print(_of_text(explanation, title, top))
        _print_sum(console, explanation, config)
        console.print(_coloured(explanation.tokens), "\n")
        return
    chosen, rejected = explained.values()
    console.print(_of_pair(chosen, rejected, title, top))
    for name, explanation in (("chosen", chosen), ("rejected", rejected)):
        _print_sum(console, explanation, config, f"[bold]{name}[/] ")
        console.print(_coloured(explanation.tokens))
    console.print()


def print_legend() -> None:
    """Print what the columns of explanations mean."""
    Console().print(f"[dim]{LEGEND}[/]")


def _print_sum(console: Console, explanation: TextExplanation, config: SparseRMConfig, prefix: str = "") -> None:
    if explanation.objectives:  # a combined reward has no training responses of its own
        console.print(f"{prefix}{explanation.summary}\n= {escape(explanation.by_objective)}")
        if explanation.by_prompt:
            console.print(escape(explanation.by_prompt))
        return
    deviation = (explanation.reward - config.reward_mean) / config.reward_std if config.reward_std else 0.0
    console.print(
        f"{prefix}{explanation.summary}; {abs(deviation):.1f} standard deviations "
        f"{'above' if deviation > 0 else 'below'} the mean of the training responses"
    )


def _of_text(explanation: TextExplanation, title: str, top: int) -> Table:
    names = [part.name for part in explanation.objectives]
    table = _table(title, None, "adds", "check", *(escape(visible(name)) for name in names))
    for effect in explanation.latents[:top]:
        parts = [f"{effect.by_objective[name]:+.3f}" for name in names]
        table.add_row(*_identify(effect), f"{effect.contribution:+.3f}", _check(effect), *parts)
    others = explanation.others(top)
    if others.count:
        table.add_row("", f"{others.count} other latents", "", f"{others.contribution:+.3f}")
    return table


def _check(effect: LatentEffect) -> str:
    """Mark that the reward falls by what the latent adds, or show by how much it falls instead."""
    if effect.removed is None:
        return ""
    return "=" if effect.as_stated else f"≠ {-effect.removed:+.3f}"


def _of_pair(chosen: TextExplanation, rejected: TextExplanation, title: str, top: int) -> Table:
    margin = chosen.reward - rejected.reward
    outcome = f"{title}\nchosen {'wins' if margin > 0 else 'loses'} by {abs(margin):.3f}"
    table = _table(outcome, None, "chosen", "rejected", "difference")
    sides = [{effect.latent: effect for effect in side.latents} for side in (chosen, rejected)]
    differences = list(contrast(chosen, rejected).items())
    for latent, difference in differences[:top]:
        effects = [side[latent] for side in sides]
        added = [f"{effect.contribution:+.3f} {_check(effect)}" for effect in effects]
        table.add_row(*_identify(effects[0]), *added, f"{difference:+.3f}")
    if others := [latent for latent, _ in differences[top:]]:
        sums = [sum(side[latent].contribution for latent in others) for side in sides]
        cells = (f"{sums[0]:+.3f}", f"{sums[1]:+.3f}", f"{sums[0] - sums[1]:+.3f}")
        table.add_row("", f"{len(others)} other latents", "", *cells)
    return table


def _table(title: str, caption: str | None, *columns: str) -> Table:
    """Make a table of latents, whose rows begin with the cells of `_identify`; it fits 80 columns."""
    table = Table(
        title=escape(title), caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left"
    )
    table.add_column("latent", justify="right")
    table.add_column("name", overflow="fold", ratio=1)
    for column in ("F1", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _identify(latent: LatentEffect | LatentReport) -> tuple[str, str, str]:
    """Make the cells for the id of a latent, its name, and the F1 of the name."""
    f1 = "" if latent.name_f1 is None else f"{latent.name_f1:.2f}"
    return str(latent.latent), escape(latent.name) or "[dim]no name[/]", f1


def print_latent_table(reports: list[LatentReport], title: str) -> None:
    """Print a table of figures of latents."""
    caption = (
        "Moves: standard deviation of what the latent adds to a reward. Fires on: % of chosen / of rejected "
        f"responses. Length: correlation with the number of tokens. Purity: cosine with the SAE's direction. {NAMED}"
    )
    table = _table(title, caption, "purity", "weight", "moves", "fires on", "length")
    for report in reports:
        rates = [
            "" if rate is None else f"{100 * rate:.0f}" for rate in (report.firing_chosen, report.firing_rejected)
        ]
        figures = [
            "" if value is None else f"{value:{form}}"
            for value, form in ((report.weight, "+.2f"), (report.importance, ".2f"))
        ]
        length = "" if report.length_correlation is None else f"{report.length_correlation:+.2f}"
        purity = f"{report.purity:.2f}"
        table.add_row(*_identify(report), purity, *figures, " / ".join(filter(None, rates)), length)
    Console().print(table)


def print_latents(reports: list[LatentReport], title: str) -> None:
    """Print a table of figures of latents, then the strongest and weakest passages of each latent."""
    console = Console()
    print_latent_table(reports, title)
    for report in reports:
        heading = f"\n[bold]latent {report.latent}[/] {escape(report.name)}"
        console.print(heading + (f" [dim]{escape(report.link)}[/]" if report.link else ""))
        for kind, passages in (("strongest", report.strongest), ("weakest", report.weakest)):
            for passage in passages:
                console.print(f"[dim]{kind:>9}[/] {passage.strength:8.2f} ", end=" ")
                console.print(_shaded(passage.tokens, passage.activations), soft_wrap=True)


def _coloured(tokens: list[TokenEffect]) -> Line:
    return _shaded([token.text for token in tokens], [token.contribution for token in tokens])


def _shaded(texts: list[str], values: list[float]) -> Line:
    """Shade each token by its value: green above zero, red below."""
    line = Line()
    largest = max(map(abs, values), default=0.0) or 1.0
    for text, value in zip(texts, values, strict=True):
        colour = [round(255 + abs(value) / largest * (c - 255)) for c in (UP if value > 0 else DOWN)]
        line.append(visible(text.replace("\n", "↵")), style=f"black on rgb({colour[0]},{colour[1]},{colour[2]})")
    return line
