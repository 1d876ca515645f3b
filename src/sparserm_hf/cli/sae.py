"""The commands `sparserm sae ...`: parse, call, print."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from ..base_models import cast_weights, load_language_model, load_tokenizer, longest_text, unpacked
from ..conversations import load_texts, prepare_tokenizer
from ..modeling.backbone_sparserm import use_exact_attention
from ..runtime import Console, SparseRMError, named_dtype, process_state, say
from ..sae import (
    AUTO,
    MIN_TOKENS,
    NOTHING_EXPLAINED,
    PRESETS,
    SAECheck,
    SAETrainingConfig,
    SAETrainingData,
    check_sae,
    chosen_sae,
    find_saes,
    load_sae,
    matching_layer,
    model_and_sae,
    train_from_dataset,
)
from ..training import MIN_LENGTH


@dataclass
class ModelAndSAE:
    """The base model and the SAE that a command is given."""

    model: str | None = field(default=None, metadata={"help": "Base model: a Hub id, a folder, or a GGUF file."})
    sae: str = field(
        default=AUTO,
        metadata={
            "help": "SAE: a folder, release/id of sae-lens, or a Hub repo; auto takes the preset's, else the middle "
            "one that sae-lens' registry lists for the base."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "Base model and SAE by one name; --model and --sae win.", "choices": list(PRESETS)},
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the base model, on the Hub."})


@dataclass(kw_only=True)
class SAECheckData(ModelAndSAE):
    """What `sparserm sae check` is given."""

    dataset: str = field(
        metadata={"help": "Texts: a file or a Hub id; rows with text, messages, prompt and completion, or pairs."}
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset, or a slice like train[:1000]."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset, on the Hub."})
    layer: int | None = field(default=None, metadata={"help": "Layer to check; by default where the SAE reads."})
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Type the base model runs in, as for `sparserm train`."}
    )
    max_tokens: int = field(default=4096, metadata={"help": "Tokens to look at; dead latents need many."})
    max_length: int = field(default=256, metadata={"help": "Most tokens of a text."})


def add_sae_commands(commands: argparse._SubParsersAction) -> None:
    """Hang `sparserm sae` and its commands on the subparsers of `sparserm`."""
    sae = commands.add_parser("sae", dataclass_types=[], help="check or train a sparse autoencoder")
    sae_commands = sae.add_subparsers(dest="sae_command", required=True)

    check = sae_commands.add_parser(
        "check", dataclass_types=[SAECheckData], help="whether an SAE fits a base model, a layer and some texts"
    )
    check.set_defaults(run=check_command)

    find = sae_commands.add_parser(
        "find", dataclass_types=[], help="the SAEs on the residual stream of a base model in sae-lens' registry"
    )
    find.add_argument("model", help="base model: a Hub id")
    find.add_argument(
        "--layer", type=int, help="list each SAE that reads this layer's output, counted from 0; else an overview"
    )
    find.set_defaults(run=find_command)

    train = sae_commands.add_parser(
        "train", dataclass_types=[SAETrainingData, SAETrainingConfig], help="train an SAE on a layer of a base model"
    )
    train.set_defaults(run=train_command)


def given(kind: type, args: argparse.Namespace) -> Any:
    """The instance of a dataclass whose fields a command was given."""
    return kind(**{f.name: getattr(args, f.name) for f in fields(kind)})


def find_command(args: argparse.Namespace) -> None:
    """`sparserm sae find`."""
    saes = find_saes(args.model)
    if not saes:
        raise SparseRMError(
            f"sae-lens' registry lists no SAE on the residual stream of {args.model!r}: train one with "
            "`sparserm sae train`."
        )
    table = Table(title=f"SAEs on the residual stream of {escape(args.model)}", box=box.SIMPLE_HEAD)
    if args.layer is not None:
        saes = [sae for sae in saes if sae.layer == args.layer]
        if not saes:
            raise SparseRMError(f"sae-lens' registry lists no SAE at layer {args.layer} of {args.model!r}.")
        for column in ("--sae", "trained on", "latents", "L0", "explained variance"):
            table.add_column(column, overflow="fold")
        for sae in saes:
            l0, variance = ("" if x is None else f"{x:.3g}" for x in (sae.l0, sae.explained_variance))
            table.add_row(escape(sae.name), escape(sae.model), sae.width, l0, variance)
    else:
        for column in ("release", "trained on", "SAEs", "layers", "latents"):
            table.add_column(column, overflow="fold")
        for release in sorted({sae.name.partition("/")[0] for sae in saes}):
            of = [sae for sae in saes if sae.name.partition("/")[0] == release]
            layers = sorted({sae.layer for sae in of if sae.layer is not None})
            shown = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else ", ".join(map(str, layers))
            widths = ", ".join(sorted({sae.width for sae in of if sae.width}))
            table.add_row(escape(release), escape(of[0].model), str(len(of)), shown, widths)
    Console().print(table)


def train_command(args: argparse.Namespace) -> None:
    """`sparserm sae train`."""
    data = given(SAETrainingData, args)
    fit = train_from_dataset(data, given(SAETrainingConfig, args))
    say(
        f"Saved {data.output_dir}: explained variance {fit.explained_variance:.3f}, L0 {fit.l0:.1f}, "
        f"{100 * fit.dead_share:.1f}% dead, on {fit.tokens:,} tokens that were held out."
    )
    if not fit.explained_variance > NOTHING_EXPLAINED:
        Console().print("It explains nothing yet: train it on more tokens.", style="red")


def check_command(args: argparse.Namespace) -> int:
    """`sparserm sae check`; returns 1 where the SAE does not fit."""
    for option, least in (("max_tokens", MIN_TOKENS), ("max_length", MIN_LENGTH)):
        if getattr(args, option) < least:
            raise SparseRMError(f"{option} is {getattr(args, option)}, but must be at least {least}.")
    name, sae_name = model_and_sae(args.preset, args.model, args.sae)
    name = unpacked(name)
    model = load_language_model(name, args.revision)
    config = model.config.get_text_config()
    sae = load_sae(chosen_sae(sae_name, config, name))
    layer = matching_layer(sae, config, name, args.layer)
    tokenizer = prepare_tokenizer(load_tokenizer(name, args.revision))
    max_length = longest_text(config, args.max_length)
    texts = load_texts(args.dataset, tokenizer, args.max_tokens, max_length, args.dataset_split, args.dataset_config)
    known: Any = model.get_input_embeddings().num_embeddings
    bos = tokenizer.bos_token_id
    largest = max(bos if isinstance(bos, int) else 0, *map(max, texts))
    if largest >= known:
        raise SparseRMError(f"A text has the token {largest}, but {name!r} has {known} tokens: use its tokenizer.")
    device = process_state().device
    model = use_exact_attention(cast_weights(model.to(device), named_dtype(args.dtype, device)).eval())
    sae.autoencoder.to(device)
    check = check_sae(model, sae, layer, texts, tokenizer, name)
    title = f"{sae.source['source']} at layer {layer} of {name}"
    print_check(check, title, len(texts), tokenizer.bos_token is not None)
    return 0 if check.verdict.fits else 1


def print_check(check: SAECheck, title: str, texts: int, has_bos: bool) -> None:
    """Print a table of the fit beside its neighbours, one of the losses, and the verdict."""
    console = Console()
    table = Table(title=escape(title))
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
    if not has_bos:
        table.add_row("other BOS: not applicable, the tokenizer has none")
    console.print(table)

    losses = Table(title="Loss of the next token, with the residual stream ...")
    for column in ("as it is", "reconstructed", "zeroed", "loss recovered %"):
        losses.add_column(column, justify="right")
    values = (check.losses.clean, check.losses.reconstructed, check.losses.ablated)
    losses.add_row(*(f"{value:.3f}" for value in values), f"{100 * check.losses.recovered:.1f}")
    console.print(losses)
    console.print(
        f"On {check.fit.tokens:,} tokens of {texts} texts. Left out, and left as they are for the losses: the first "
        f"tokens and {check.fit.sinks} attention sinks with a norm above 3 times the median.",
        highlight=False,
    )
    console.print(escape(check.verdict.sentence), style="green" if check.verdict.fits else "red", highlight=False)
