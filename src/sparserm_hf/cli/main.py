"""The program `sparserm`: find the command, parse its arguments, run it, and turn errors into exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import string
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from ..runtime import SparseRMError, VisibleFormatter, __version__, one_line, say_error, say_hint

# Each command lives in a file of its own, which is imported only when the command is run: `sae check` in sae_check.py.
COMMANDS = {
    "train": "Train a reward model on preference pairs.",
    "score": "Score texts or preference pairs into JSON Lines.",
    "evaluate": "Measure the accuracy on preference pairs or a benchmark, beside controls or another reward model.",
    "explain": "Explain rewards by latent and by token.",
    "latents": "Show the selected latents: their figures, and the passages on which they are active.",
    "report": "Write a report on a reward model into one HTML file.",
    "monitor": "Measure how far responses drifted from those of training; exit with 1 if they drifted too far.",
    "combine": "Combine reward models into one that scores several objectives in one pass.",
    "edit": "Copy a reward model and steer or name latents of the copy.",
    "export": "Write a reward model as a sequence classifier that transformers loads without remote code.",
    "serve": "Score over HTTP.",
    "label": "Label pairs of responses on a page that picks the next pair, and train a reward model on the labels.",
    "sae check": "Check that an SAE fits a base model, a layer and texts; exit with 1 if it does not.",
    "sae find": "List the SAEs that sae-lens' registry has for the residual stream of a base model.",
    "sae train": "Train an SAE on a layer of a base model.",
    "align": "Align a policy in rounds: write pairs, filter them with a reward model, train on them with DPO.",
    "demo": "Train a reward model on TruthfulQA and show what it learned, without a download.",
}
SAE_COMMANDS = "Check, find or train sparse autoencoders (SAEs)."


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def build_parser(arguments: Sequence[str]) -> Parser:
    """Build the parser of `sparserm`, in which only the command that is run has its arguments.

    Args:
        arguments: Command line without the program's name.

    Returns:
        The parser. Its result holds the command's function as `run`, and a hint on the next step as `next`.
    """
    parser = Parser(prog="sparserm", description="Interpretable reward models from sparse autoencoders.")
    parser.add_argument("--version", action="version", version=f"sparserm-hf {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, description in COMMANDS.items():
        if name.startswith("sae "):
            if "sae" not in parsers:
                parsers["sae"] = commands.add_parser("sae", help=SAE_COMMANDS)
                sae_commands = parsers["sae"].add_subparsers(title="commands", metavar="COMMAND", required=True)
            parsers[name] = sae_commands.add_parser(name.removeprefix("sae "), help=description)
        else:
            parsers[name] = commands.add_parser(name, help=description)
    for name in (" ".join(arguments[:2]), *arguments[:1]):
        if name in COMMANDS:
            command = import_module(f".{name.replace(' ', '_')}", __package__)
            parsers[name].description = COMMANDS[name]
            command.add_arguments(parsers[name])
            parsers[name].formatter_class = argparse.RawDescriptionHelpFormatter
            parsers[name].epilog = f"example:\n  {command.EXAMPLE}"
            parsers[name].set_defaults(run=command.run, next=command.NEXT)
            break
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Command line without the program's name; by default, that of the process.

    Returns:
        The exit code: 0; 1 if `sae check` finds that an SAE does not fit, or `monitor` that responses drifted too far;
        2 if an input was wrong or a file cannot be used; 128 plus the number of the signal that ended the command.
    """
    arguments = [_with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    _quieten_libraries()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        args = build_parser(arguments).parse_args(arguments)
        _set_up_logging()
        code = args.run(args) or 0
        if code == 0:
            _say_next(args)
        return code
    except (SparseRMError, OSError) as error:
        if os.environ.get("SPARSERM_TRACEBACK"):
            raise
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        file = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        say_error(f"{message}{file}")
        return 2
    except KeyboardInterrupt as stopped:
        print(
            "sparserm: interrupted; what is cached or written in parts is kept and will not be computed again.",
            file=sys.stderr,
        )
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)


def _say_next(args: argparse.Namespace) -> None:
    """Print the hint on the next step, in one process only, unless the hint needs an argument that was not given."""
    from ..runtime import process_state  # imports torch, which `--help` does not need

    given = {name: value[0] if isinstance(value, list) and value else value for name, value in vars(args).items()}
    values = {name: value if value is None else shlex.quote(str(value)) for name, value in given.items()}
    needed = [name for _, name, _, _ in string.Formatter().parse(args.next) if name]
    if args.next and all(values[name] is not None for name in needed) and process_state().is_main_process:
        say_hint(args.next.format_map(values))


def _with_underscores(argument: str) -> str:
    """Accept `--output-dir` for `--output_dir`, as TRL's commands do."""
    option, equals, value = argument.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if option.startswith("--") else argument


def _quieten_libraries() -> None:
    """Silence the warnings that libraries log when they are imported, or on a machine without a GPU."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree", "DeepSpeed"):
        library = logging.getLogger(name)
        library.setLevel(logging.ERROR)
        library.addFilter(_is_error)  # also works if a library sets its own level


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _set_up_logging() -> None:
    import transformers  # takes half a second, which `--help` does not need

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "httpx2", "datasets", "fsspec", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").handlers.clear()  # each line would come twice, once unescaped
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _terminated(number: int, _: object) -> NoReturn:
    """End as Ctrl-C does, so that no file is left half-written."""
    raise KeyboardInterrupt(number)
