"""The command `sparserm`: choose a command, run it, and turn errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from importlib import import_module
from typing import NoReturn

from ..runtime import SparseRMError, VisibleFormatter, say_error
from .parser import Parser

# Each command is a file of this folder, which is imported when its command is chosen: `sparserm --help` is quick.
COMMANDS = {
    "train": "train a reward model",
    "score": "score texts or pairs into JSON Lines",
    "evaluate": "accuracy on preference pairs or a benchmark, beside the controls",
    "explain": "what each latent and each token added to a reward",
    "latents": "the selected latents: figures, names, and the passages that they fire on",
    "report": "one HTML file: accuracy, named latents, and pairs token by token",
    "monitor": "how far responses are from the training responses; exit code 1 if too far",
    "edit": "a copy with latents steered or named, and the effect",
    "export": "a plain sequence classifier of transformers, without remote code",
    "serve": "an HTTP server that scores",
    "sae": "check, find or train a sparse autoencoder",
    "align": "rounds of writing pairs, filtering them by a reward model, and DPO",
    "demo": "train, evaluate and score without any hub",
}
CHATTY = ("httpx", "httpx2", "datasets", "fsspec", "urllib3")


def build_parser(*chosen: str) -> argparse.ArgumentParser:
    """Build the parser of `sparserm`.

    Args:
        chosen: The commands whose arguments are needed; of the others only the names are known. By default all.
    """
    parser = Parser(prog="sparserm", description="Interpretable reward models from sparse autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, summary in COMMANDS.items():
        if name in (chosen or COMMANDS):
            import_module(f".{name}", __package__).add_to(commands, summary)
        else:
            commands.add_parser(name, help=summary)
    return parser


def _terminated(number: int, _: object) -> NoReturn:
    """End as Ctrl-C does, so that nothing half-written is left."""
    raise KeyboardInterrupt(number)


def _prepare_process() -> None:
    """Set up logging and signals, and keep other libraries quiet."""
    import transformers

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of each multiplication in 8 bits
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 where `sae check` finds that an SAE does not fit, or `monitor` that responses drifted; 2
        where an argument or a file was wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    chosen = next((word for word in argv if word in COMMANDS), "none")
    args = build_parser(chosen).parse_args(argv)
    _prepare_process()
    try:
        code = args.run(args)
    except (SparseRMError, OSError) as error:
        if os.environ.get("SPARSERM_TRACEBACK"):
            raise
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        where = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        say_error(f"{message}{where}")
        return 2
    except KeyboardInterrupt as stopped:
        print(
            "sparserm: interrupted; what is cached or written in parts is kept and will not be computed again.",
            file=sys.stderr,
        )
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    return code or 0
