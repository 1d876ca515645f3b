"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..conversations import MIN_LENGTH
from ..sae import AUTO, PRESETS


@dataclass
class ModelAndSAE:
    """The base model and the SAE of a command."""

    model: str | None = field(default=None, metadata={"help": "Base model: a Hub id, a folder, or a GGUF file."})
    sae: str = field(
        default=AUTO,
        metadata={
            "help": "SAE: a folder, release/id of sae-lens, or a Hub repository. auto takes the preset's SAE, or else "
            "the middle SAE that sae-lens' registry lists for the base model."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "Base model and SAE by one name; --model and --sae win.", "choices": list(PRESETS)},
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the base model on the Hub."})


def grouped(groups: dict[str, tuple[str, ...]], *kinds: type) -> list[type]:
    """Sort the fields of dataclasses into groups of options, for `Parser`.

    Args:
        groups: Names of fields, by the title of their group.
        kinds: The dataclasses.

    Returns:
        A dataclass for each group.
    """
    known = {f.name: (get_type_hints(kind)[f.name], f) for kind in kinds for f in fields(kind)}
    if left := set(known) - {name for names in groups.values() for name in names}:
        raise ValueError(f"These options are in no group: {sorted(left)}.")
    made = []
    for title, names in groups.items():
        options: list[Any] = []
        for name in names:
            hint, given = known[name]
            copied = field(default=given.default, metadata=given.metadata, kw_only=True)
            options.append((name, hint, copied))
        made.append(make_dataclass("Group", options, namespace={"_argument_group_name": title}))
    return made


def given(kind: type, args: argparse.Namespace) -> Any:
    """Make an instance of a dataclass out of parsed arguments."""
    return kind(**{f.name: getattr(args, f.name) for f in fields(kind)})


def text_length(text: str) -> int:
    """Parse a maximum number of tokens, for argparse."""
    if not text.lstrip("-").isdigit() or int(text) < MIN_LENGTH:
        raise argparse.ArgumentTypeError(f"max_length is {text}, but must be at least {MIN_LENGTH}")
    return int(text)


def add_reward_model(parser: argparse.ArgumentParser) -> None:
    """Add the reward model, and how it is loaded."""
    parser.add_argument("model", help="reward model: a folder or a Hub id")
    add_revision(parser)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="type to run in")


def add_revision(parser: argparse.ArgumentParser) -> None:
    """Add the reward model's revision."""
    parser.add_argument("--revision", help="revision of the reward model on the Hub")


def add_max_length(parser: argparse.ArgumentParser) -> None:
    """Add the length that texts are cut to."""
    parser.add_argument("--max_length", type=text_length, help="most tokens of a text (by default as in training)")


def add_split(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the split of a dataset."""
    parser.add_argument("--split", default=default, help="split of the dataset; slices such as train[:1000] work")


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the cache."""
    parser.add_argument("--cache_dir", type=Path, help="folder of cached representations (by default in HF_HOME)")
