"""The parser that all commands use."""

from __future__ import annotations

from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from typing import Any, NoReturn

from transformers import HfArgumentParser

from ..runtime import one_line


class Parser(HfArgumentParser):
    """An argument parser whose errors are one sentence, and whose help ends with an example."""

    def __init__(self, dataclass_types: Any = (), example: str = "", **kwargs: Any):
        epilog = f"example:\n  {example}" if example else None
        super().__init__(dataclass_types, formatter_class=RawDescriptionHelpFormatter, epilog=epilog, **kwargs)

    def add_argument(self, *names: str, **settings: Any) -> Action:
        """Add an argument outside the groups; see `described`."""
        return super().add_argument(*names, **described(names, settings))

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        """Add a group, whose arguments are `described` too."""
        group = super().add_argument_group(*args, **kwargs)
        add = group.add_argument
        group.add_argument = lambda *names, **settings: add(*names, **described(names, settings))  # type: ignore
        return group

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def described(names: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """Complete the help of an argument: with its default, and with the effect of a switch such as `--no_controls`.

    HfArgumentParser gives `--no_x` the help of `--x`.
    """
    if settings.get("action") == "store_false":
        return settings | {"help": f"Turn --{names[0].removeprefix('--no_')} off."}
    shown = settings.get("default") not in (None, False, SUPPRESS) and "default" not in settings.get("help", "")
    return settings | {"help": f"{settings['help']} (default: %(default)s)"} if shown else settings
