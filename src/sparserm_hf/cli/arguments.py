"""Arguments that several commands share, and options made of the fields of a dataclass."""

from __future__ import annotations

import argparse
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..conversations import MIN_LENGTH
from ..sae import AUTO, PRESETS

DTYPES = ("auto", "float32", "bfloat16")


@dataclass
class ModelAndSAE:
    """Base model and SAE."""

    model: str | None = field(default=None, metadata={"help": "Base model: a Hub id, a folder or a GGUF file."})
    sae: str = field(
        default=AUTO,
        metadata={
            "help": "SAE: a folder, release/id in sae-lens' registry, or a Hub repository; auto takes the preset's, "
            "else the middle SAE that the registry lists for the base model."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"Base model and SAE by one name, which --model and --sae override: {', '.join(PRESETS)}.",
            "choices": list(PRESETS),
        },
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the base model on the Hub."})


def add_settings(parser: argparse.ArgumentParser, settings: type, groups: Mapping[str, Sequence[str]]) -> None:
    """Add an option for each field of a dataclass.

    The usage names the required options only. A field's metadata holds its `help`, and its `choices` if its type does
    not name them. The option of a list may be given several times. A field of the type bool takes `--<name>`, with or
    without true or false after it. If it is true by default there is `--no_<name>` too, and the metadata holds the
    help of that option as `off`.

    Args:
        parser: Parser of a command.
        settings: The dataclass.
        groups: Names of the fields by the title of the group that shows them in the help.

    Raises:
        KeyError: A field is in no group.

    Example:
        >>> @dataclass
        ... class Settings:
        ...     k: int = field(default=8, metadata={"help": "Number of latents."})
        >>> parser = argparse.ArgumentParser()
        >>> add_settings(parser, Settings, {"method": ["k"]})
        >>> given(Settings, parser.parse_args(["--k", "4"]))
        Settings(k=4)
    """
    types = get_type_hints(settings)
    by_name = {setting.name: setting for setting in fields(settings)}
    required = (f" --{name} {name.upper()}" for name, setting in by_name.items() if setting.default is MISSING)
    parser.usage = (parser.usage or "%(prog)s [options]") + "".join(required)
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_setting(group, by_name.pop(name), types[name])
    if by_name:
        raise KeyError(f"{settings.__name__} has fields in no group: {', '.join(by_name)}")


def _add_setting(group: Any, setting: Field[Any], annotation: Any) -> None:
    name, metadata = setting.name, setting.metadata
    if annotation is bool:
        # Like the booleans of HfArgumentParser, which people know from transformers and TRL.
        switch: dict[str, Any] = {"nargs": "?", "const": True, "default": setting.default, "type": _truth}
        shown = SUPPRESS if setting.default else _escaped(metadata["help"])
        group.add_argument(f"--{name}", help=shown, metavar="BOOL", **switch)
        if setting.default:
            group.add_argument(f"--no_{name}", action="store_false", dest=name, help=_escaped(metadata["off"]))
        return
    options: dict[str, Any] = {"help": _escaped(metadata["help"])}
    if setting.default is MISSING:
        options["required"] = True
    else:
        options["default"] = setting.default
        options["help"] += "" if setting.default is None else " (default: %(default)s)"
    if get_origin(annotation) is Literal:
        options["choices"] = get_args(annotation)
    elif get_origin(annotation) is list:
        options["action"] = "append"
    else:
        types = [kind for kind in get_args(annotation) or [annotation] if kind is not NoneType]
        options["type"] = str if str in types else types[0]
        if "choices" in metadata:  # the choices are many, and would crowd the usage
            options |= {"choices": metadata["choices"], "metavar": name.upper()}
    group.add_argument(f"--{name}", **options)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError(f"it is {text}, but must be true or false")
    return text.lower() in ("true", "yes", "1")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def given(settings: type, args: argparse.Namespace) -> Any:
    """Make an instance of a dataclass out of parsed options.

    Args:
        settings: The dataclass, whose fields `add_settings` has added as options.
        args: Parsed options.

    Returns:
        The instance.

    Raises:
        SparseRMError: A setting is out of its range.
    """
    return settings(**{setting.name: getattr(args, setting.name) for setting in fields(settings)})


def add_reward_model(parser: argparse.ArgumentParser) -> Any:
    """Add a reward model and its revision; returns their group, for further options of the model."""
    group = parser.add_argument_group("reward model")
    group.add_argument("model", help="Reward model: a folder or a Hub id.")
    group.add_argument("--revision", help="Revision of the reward model on the Hub.")
    return group


def add_dtype(group: Any) -> None:
    """Add the data type to run a reward model in."""
    group.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="Data type to run the model in (default: %(default)s)."
    )


def add_scoring_model(parser: argparse.ArgumentParser) -> Any:
    """Add a reward model that scores texts, with its data type and the length of the texts; returns their group."""
    model = add_reward_model(parser)
    add_dtype(model)
    model.add_argument(
        "--max_length", type=_text_length, help="Maximum number of tokens of a text; by default, as in training."
    )
    return model


def _text_length(text: str) -> int:
    if not text.lstrip("-").isdigit() or int(text) < MIN_LENGTH:
        raise argparse.ArgumentTypeError(f"max_length is {text}, but must be at least {MIN_LENGTH}")
    return int(text)


def add_cache_dir(group: Any) -> None:
    """Add the folder of cached representations."""
    group.add_argument(
        "--cache_dir", type=Path, help="Folder to cache representations in; by default, sparserm in HF_HOME."
    )
