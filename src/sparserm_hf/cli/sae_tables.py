"""Tables about SAEs in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from ..runtime import Console
from ..sae import SINK_RATIO, ListedSAE, SAECheck


def _table(model: str, columns: Sequence[str]) -> Table:
    table = Table(title=f"SAEs on the residual stream of {escape(model)}", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_saes(saes: Sequence[ListedSAE], model: str) -> None:
    """Print a row for each SAE."""
    table = _table(model, ("--sae", "trained on", "latents", "L0", "explained variance"))
    for sae in saes:
        l0, variance = ("" if value is None else f"{value:.3g}" for value in (sae.l0, sae.explained_variance))
        table.add_row(escape(sae.name), escape(sae.model), sae.width, l0, variance)
    Console().print(table)


def print_releases(saes: Sequence[ListedSAE], model: str) -> None:
    """Print a row for each release of SAEs."""
    table = _table(model, ("release", "trained on", "SAEs", "layers", "latents"))
    for release in sorted({sae.name.partition("/")[0] for sae in saes}):
        released = [sae for sae in saes if sae.name.partition("/")[0] == release]
        layers = sorted({sae.layer for sae in released if sae.layer is not None})
        shown = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else ", ".join(map(str, layers))
        widths = ", ".join(sorted({sae.width for sae in released if sae.width}))
        table.add_row(escape(release), escape(released[0].model), str(len(released)), shown, widths)
    Console().print(table)


def print_check(check: SAECheck) -> None:
    """Print the fit of an SAE, its fit at other layers and with other settings, the losses, and the verdict."""
    console = Console()
    table = Table(title=escape(check.title))
    table.add_column("", no_wrap=True)
    for column in ("explained variance", "L0", "dead %", "share of the norm"):
        table.add_column(column, justify="right")
    for name, fit in [("as given", check.fit), *((n.name, n.fit) for n in check.neighbours)]:
        table.add_row(
            escape(name),  # a begin-of-text token may be called [BOS]
            f"{fit.explained_variance:.3f}",
            f"{fit.l0:.1f}",
            f"{100 * fit.dead_share:.1f}",
            f"{fit.norm_share:.3f}",
            style="bold" if fit is check.fit else None,
        )
    if not check.has_bos:
        table.add_row("other BOS: not applicable, the tokenizer has none")
    console.print(table)

    losses = Table(title="Loss of the next token, with the residual stream ...")
    for column in ("as it is", "reconstructed", "zeroed", "loss recovered %"):
        losses.add_column(column, justify="right")
    values = (check.losses.clean, check.losses.reconstructed, check.losses.ablated)
    losses.add_row(*(f"{value:.3f}" for value in values), f"{100 * check.losses.recovered:.1f}")
    console.print(losses)
    console.print(
        f"On {check.fit.tokens:,} tokens of {check.texts} texts. Left out, and left as they are for the losses: the "
        f"first tokens and {check.fit.sinks} attention sinks with a norm above {SINK_RATIO:g} times the median.",
        highlight=False,
    )
    console.print(escape(check.verdict.sentence), style="green" if check.verdict.fits else "red", highlight=False)
