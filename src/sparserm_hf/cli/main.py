"""The command `sparserm`: parse, call, print."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import transformers
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from ..cli.demo import run_demo
from ..conversations import iterate_rows, load_preferences
from ..evaluation import BENCHMARKS, evaluate, run_benchmark
from ..integrations import export_stock
from ..runtime import (
    SparseRMError,
    VisibleFormatter,
    check_output_file,
    escaped_json,
    one_line,
    process_state,
    say,
    say_error,
    without_extra,
)
from ..sae import model_and_sae
from ..scoring import json_line, load_reward_model, row_errors, score_rows, score_to_file
from ..training import MIN_LENGTH, SparseRMTrainer, SparseRMTrainingConfig
from .align import add_align_command
from .evaluation_tables import print_benchmark, print_evaluation
from .explain import add_explain_commands
from .output import tell_errors
from .sae import ModelAndSAE, add_sae_commands, given


@dataclass(kw_only=True)
class TrainData(ModelAndSAE):
    """What `sparserm train` is given besides its settings."""

    dataset: str = field(metadata={"help": "Preference pairs: a .json, .jsonl(.gz), .csv, .parquet file or a Hub id."})
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset; slices like train[:1000] work."}
    )
    eval_dataset: str | None = field(default=None, metadata={"help": "Pairs to evaluate on, beside the controls."})
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of the evaluation pairs, on the Hub."})


class Parser(HfArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def _text_length(text: str) -> int:
    """A number of tokens that a text may have, for argparse."""
    if not text.lstrip("-").isdigit() or int(text) < MIN_LENGTH:
        raise argparse.ArgumentTypeError(f"max_length is {text}, but must be at least {MIN_LENGTH}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `sparserm` and its subcommands."""
    parser = Parser([], prog="sparserm", description="Interpretable reward models from sparse autoencoders.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    train = commands.add_parser(
        "train", dataclass_types=[TrainData, SparseRMTrainingConfig], help="train a reward model"
    )
    train.set_defaults(run=train_command)

    score = commands.add_parser("score", dataclass_types=[], help="score texts or pairs into JSON Lines")
    score.add_argument("model", help="reward model: a folder or a Hub id")
    score.add_argument(
        "input", help="rows with text, messages, prompt and completion, or chosen and rejected; - for stdin"
    )
    score.add_argument(
        "--output", type=Path, help="file to write; a killed run goes on where it stopped, by default stdout"
    )
    score.add_argument("--probabilities", action="store_true", help="how likely it is that chosen is preferred")
    score.add_argument(
        "--engine",
        default="local",
        choices=["local", "ray"],
        help="ray: Parquet files into a folder of Parquet files, on the cluster of RAY_ADDRESS or on this machine",
    )
    score.add_argument(
        "--workers", type=int, help="Ray: processes that hold the model (by default one a GPU, or a four CPUs)"
    )
    score.set_defaults(run=score_command)

    evaluate = commands.add_parser(
        "evaluate", dataclass_types=[], help="accuracy on preference pairs or a benchmark, beside the controls"
    )
    evaluate.add_argument("model", help="reward model: a folder or a Hub id")
    evaluate.add_argument(
        "dataset", nargs="?", help="preference pairs, or a benchmark's rows: a file or a Hub id (by default its own)"
    )
    evaluate.add_argument("--benchmark", choices=list(BENCHMARKS), help="score as this benchmark's own code does")
    evaluate.add_argument("--split", help="split of a Hub dataset, by default test, or that of the benchmark")
    evaluate.add_argument("--cache_dir", type=Path, help="where representations are kept (by default in HF_HOME)")
    evaluate.set_defaults(run=evaluate_command)

    looking = add_explain_commands(commands)

    export = commands.add_parser("export", dataclass_types=[], help="write a reward model in another form")
    export.add_argument("model", help="reward model: a folder or a Hub id")
    export.add_argument("--output_dir", type=Path, required=True, help="folder to write, new or empty")
    export.add_argument(
        "--stock",
        action="store_true",
        required=True,
        help="as a plain sequence classifier of transformers, without remote code; for linear heads on the last token",
    )
    export.set_defaults(run=export_command)

    serve = commands.add_parser("serve", dataclass_types=[], help="an HTTP server that scores")
    serve.add_argument("model", help="reward model: a folder or a Hub id")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address; any but this machine's own needs a token in SPARSERM_TOKEN"
    )
    serve.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one")
    serve.add_argument(
        "--exact", action="store_true", help="score each text alone: the same reward to the bit whoever else calls"
    )
    serve.set_defaults(run=serve_command)

    for command in (score, evaluate, serve, *looking):
        command.add_argument(
            "--max_length", type=_text_length, help="most tokens of a text (by default as in training)"
        )
    for command in (score, evaluate, serve, export, *looking):
        command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="type to run in")
        command.add_argument("--revision", help="revision of the reward model on the Hub")

    add_sae_commands(commands)
    add_align_command(commands)

    demo = commands.add_parser("demo", dataclass_types=[], help="train, evaluate and score without any hub")
    demo.add_argument("--output_dir", default="demo-output", help="folder for data and model")
    demo.set_defaults(run=demo_command)
    return parser


def train_command(args: argparse.Namespace) -> None:
    """`sparserm train`."""
    config = given(SparseRMTrainingConfig, args)
    model, sae = model_and_sae(args.preset, args.model, args.sae)
    evaluation_data = None
    if args.eval_dataset:
        evaluation_data = load_preferences(args.eval_dataset, args.eval_dataset_split)
    trainer = SparseRMTrainer(
        model,
        sae,
        config,
        load_preferences(args.dataset, args.dataset_split),
        evaluation_data,
        revision=args.revision,
    )
    metrics = trainer.train()
    trainer.save_model()
    if process_state().is_main_process:
        if trainer.evaluation is not None:
            print_evaluation(trainer.evaluation, f"{config.output_dir} on {args.eval_dataset}")
        stages = (
            f"{metrics['representation_seconds']:.1f} s for representations, {metrics['fit_seconds']:.1f} s to fit"
        )
        say(f"Saved {config.output_dir}: {metrics['trainable_parameters']:,} trained parameters; {stages}.")


def score_command(args: argparse.Namespace) -> int:
    """`sparserm score`; returns 2 where rows could not be scored."""
    check_output_file(args.output)
    if args.engine == "ray":
        return score_on_ray(args)
    state = process_state()
    if state.num_processes > 1 and (args.output is None or args.input == "-"):
        raise SparseRMError("Several processes score a file into a file: name an input file and --output.")
    rows: Any = iterate_rows(args.input)
    model, tokenizer = load_reward_model(args.model, state.device, args.dtype, args.revision)
    source = "" if args.input == "-" else args.input
    rows = tqdm(rows, desc="Scoring", unit="row", delay=2, disable=not state.is_main_process)
    if args.output is None:
        errors = []
        for row in score_rows(model, tokenizer, rows, args.max_length, args.probabilities, source):
            line = json_line(row)
            errors += row_errors(line.encode())
            sys.stdout.write(escaped_json(line))
            sys.stdout.flush()
        return tell_errors(errors)
    scored = score_to_file(model, tokenizer, rows, args.output, args.max_length, args.probabilities, source)
    if state.is_main_process:
        print_written(args.output, scored.kept)
    return tell_errors(scored.errors)


def score_on_ray(args: argparse.Namespace) -> int:
    """`sparserm score --engine ray`."""
    try:
        from ..integrations import score_parquet
    except ModuleNotFoundError as error:
        raise without_extra("The Ray engine", error, "ray") from None
    if args.output is None:
        raise SparseRMError("The Ray engine writes a folder of Parquet files: name it with --output.")
    scored = score_parquet(
        args.model,
        Path(args.input),
        args.output,
        args.max_length,
        args.dtype,
        args.revision,
        args.workers,
        args.probabilities,
    )
    print_written(args.output, scored.kept)
    return tell_errors(scored.errors)


def print_written(output: Path, before: int) -> None:
    """Say where the scores are."""
    say(f"Wrote {output}" + (f"; {before} rows were there from a run before." if before else "."))


def evaluate_command(args: argparse.Namespace) -> None:
    """`sparserm evaluate`."""
    options = (args.max_length, args.dtype, args.revision, args.cache_dir)
    if args.benchmark:
        benchmark = BENCHMARKS[args.benchmark]
        dataset = args.dataset or benchmark.dataset
        rows = load_preferences(dataset, args.split or benchmark.split)
        reports = run_benchmark(args.model, args.benchmark, rows, *options)
        if process_state().is_main_process:
            print_benchmark(reports, f"{args.model} on {benchmark.title}")
        return
    if args.dataset is None:
        raise SparseRMError("There is nothing to evaluate on: name preference pairs, or a --benchmark.")
    pairs = load_preferences(args.dataset, args.split or "test")
    evaluation = evaluate(args.model, pairs, *options)
    if process_state().is_main_process:
        print_evaluation(evaluation, f"{args.model} on {args.dataset}")


def export_command(args: argparse.Namespace) -> None:
    """`sparserm export`."""
    dtype = "saved" if args.dtype == "auto" else args.dtype
    model, tokenizer = load_reward_model(args.model, process_state().device, dtype, args.revision)
    difference = export_stock(model, tokenizer, args.output_dir, args.model)
    say(f"Wrote {args.output_dir}; on probe conversations it differs by {difference:.1e} standard deviations.")


def serve_command(args: argparse.Namespace) -> None:
    """`sparserm serve`."""
    try:
        from ..server import check_host, create_app, serve
    except ModuleNotFoundError as error:
        raise without_extra("The server", error, "serve") from None
    token = os.environ.get("SPARSERM_TOKEN")
    check_host(args.host, token)
    model, tokenizer = load_reward_model(args.model, process_state().device, args.dtype, args.revision)
    app = create_app(model, tokenizer, Path(args.model).name, token, args.max_length, exact=args.exact)
    serve(app, args.host, args.port)


def demo_command(args: argparse.Namespace) -> None:
    """`sparserm demo`."""
    run_demo(Path(args.output_dir))


def _terminated(number: int, _: object) -> NoReturn:
    """End as Ctrl-C does, so that nothing half-written is left."""
    raise KeyboardInterrupt(number)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    It is 0; 1 where `sae check` finds that an SAE does not fit, or `monitor` that responses drifted; or 2 where
    something given was wrong.
    """
    args = build_parser().parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "httpx2", "datasets", "fsspec", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of each multiplication in 8 bits
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
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
