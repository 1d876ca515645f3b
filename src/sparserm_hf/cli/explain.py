"""The commands that look inside and correct: `sparserm explain`, `sparserm features`, `sparserm edit`."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..conversations import iterate_rows, load_preferences
from ..explanations import Describer, edit_model, explain_rows, report_latents, write_report
from ..monitoring import ALARM, monitor
from ..runtime import SparseRMError, check_output_file, process_state, replacing_file, say
from ..scoring import json_line, load_reward_model
from .explanation_tables import print_drift, print_effect, print_explanation, print_latents
from .output import tell_errors


def add_explain_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add these commands to those of `sparserm`; returns those that run in a type and truncate as one likes."""
    explain = commands.add_parser("explain", dataclass_types=[], help="what made each reward, by latent and token")
    explain.add_argument("model", help="reward model: a folder or a Hub id")
    explain.add_argument("input", help="rows as `score` takes them; - for stdin")
    explain.add_argument("--output", type=Path, help="JSON Lines with everything, by default tables on the terminal")
    explain.add_argument("--top", type=int, default=10, help="latents in a table")
    explain.set_defaults(run=explain_command)

    features = commands.add_parser(
        "features", dataclass_types=[], help="the selected latents: figures of each, and the passages they fire on"
    )
    features.add_argument("model", help="reward model: a folder or a Hub id")
    features.add_argument("dataset", help="preference pairs, such as it was trained on: a file or a Hub id")
    features.add_argument("--split", default="train", help="split of the dataset; slices like train[:1000] work")
    features.add_argument("--top", type=int, default=10, help="latents to show, those that move the reward most")
    features.add_argument("--examples", type=int, default=3, help="passages of each, strongest and weakest")
    features.add_argument(
        "--describe_with", metavar="URL", help="OpenAI-compatible endpoint that is asked for descriptions, and tested"
    )
    features.add_argument("--describe_model", metavar="NAME", help="language model to ask there")
    features.add_argument("--output", type=Path, help="JSON Lines with a latent each, by default a table")
    features.add_argument("--cache_dir", type=Path, help="where representations are kept (by default in HF_HOME)")
    features.set_defaults(run=features_command)

    report = commands.add_parser(
        "report", dataclass_types=[], help="one HTML file: how good it is, which features decide, pairs token by token"
    )
    report.add_argument("model", help="reward model: a folder or a Hub id")
    report.add_argument(
        "--dataset",
        help="preference pairs to measure it on and to show: a file or a Hub id (by default none)",
    )
    report.add_argument("--split", default="test", help="split of a Hub dataset")
    report.add_argument("--examples", type=int, default=24, help="pairs to show")
    report.add_argument("--output", type=Path, help="file to write, by default the model's name with -report.html")
    report.add_argument("--cache_dir", type=Path, help="where representations are kept (by default in HF_HOME)")
    report.set_defaults(run=report_command)

    monitoring = commands.add_parser(
        "monitor", dataclass_types=[], help="how far responses are from those of training; exit code 1 if too far"
    )
    monitoring.add_argument("model", help="reward model: a folder or a Hub id")
    monitoring.add_argument("input", help="a policy's responses, rows as `score` takes them; - for stdin")
    monitoring.add_argument(
        "--alarm",
        type=float,
        default=ALARM,
        help="share of features outside their range in training, or of rewards that the dense twin contradicts, "
        "that is too many (1%% each if nothing drifts)",
    )
    monitoring.add_argument("--top", type=int, default=10, help="latents to show, those that moved most")
    monitoring.set_defaults(run=monitor_command)

    edit = commands.add_parser(
        "edit", dataclass_types=[], help="a copy with latents steered or named, and what that does"
    )
    edit.add_argument("model", help="reward model: a folder or a Hub id")
    edit.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    for name, what, help_text in (
        ("--steer", "FACTOR", "multiply what latents add: 0 drops one, 1 restores it"),
        ("--label", "NAME", "what latents are called"),
    ):
        metavar = f"LATENT={what}"
        edit.add_argument(
            name, nargs="+", action="extend", default=[], metavar=metavar, type=_assignment, help=help_text
        )
    edit.add_argument("--dataset", help="preference pairs to measure the effect on: a file or a Hub id")
    edit.add_argument("--split", default="test", help="split of a Hub dataset")
    edit.add_argument("--cache_dir", type=Path, help="where representations are kept (by default in HF_HOME)")
    edit.add_argument("--revision", help="revision of the reward model on the Hub")
    edit.set_defaults(run=edit_command)
    return [explain, features, report, monitoring]


def _assignment(text: str) -> tuple[int, str]:
    """A latent and what it is given, for argparse."""
    latent, equals, value = text.partition("=")
    if not latent.isdigit() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must look like 123=VALUE, with the id of a latent")
    return int(latent), value


def _factor(latent: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SparseRMError(f"Latent {latent} has the factor {text!r}, but it must be a number.") from None


def explain_command(args: argparse.Namespace) -> int:
    """`sparserm explain`; returns 2 where rows could not be explained."""
    if process_state().num_processes > 1:
        raise SparseRMError("sparserm explain runs in one process: start it without a launcher.")
    check_output_file(args.output)
    model, tokenizer = load_reward_model(args.model, process_state().device, args.dtype, args.revision)
    rows: Any = tqdm(iterate_rows(args.input), desc="Explaining", unit="row", delay=2, disable=args.output is None)
    errors = []
    with ExitStack() as stack:
        file = None
        if args.output:
            file = stack.enter_context(stack.enter_context(replacing_file(args.output)).open("w", encoding="utf-8"))
        for number, explained in enumerate(explain_rows(model, tokenizer, rows, args.max_length, args.input), 1):
            if explained.error:
                errors.append(explained.error)
            if file:
                file.write(json_line(explained.as_json()))
            elif not explained.error:
                print_explanation(explained.explanations, model.config, f"Row {number}", args.top)
    return tell_errors(errors)


def features_command(args: argparse.Namespace) -> None:
    """`sparserm features`."""
    check_output_file(args.output)
    if bool(args.describe_with) != bool(args.describe_model):
        raise SparseRMError("--describe_with URL and --describe_model NAME belong together: name both, or neither.")
    describer = Describer.at(args.describe_with, args.describe_model) if args.describe_with else None
    rows = load_preferences(args.dataset, args.split)
    how = (args.max_length, args.dtype, args.revision, args.cache_dir)
    reports = report_latents(args.model, rows, args.top, args.examples, describer, *how)
    if not process_state().is_main_process:
        return
    if args.output:
        with replacing_file(args.output) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json_line(asdict(report)) for report in reports.latents)
    else:
        print_latents(reports.latents, f"{args.model} on {args.dataset}, {reports.pairs} pairs")


def report_command(args: argparse.Namespace) -> None:
    """`sparserm report`."""
    rows = load_preferences(args.dataset, args.split) if args.dataset else None
    how = (args.max_length, args.dtype, args.revision, args.cache_dir)
    output = write_report(args.model, args.output, rows, args.examples, *how)
    if process_state().is_main_process:
        say(f"Wrote {output}.")


def monitor_command(args: argparse.Namespace) -> int:
    """`sparserm monitor`; returns 1 where the responses are too far from those of training."""
    drift = monitor(args.model, iterate_rows(args.input), args.input, args.max_length, args.dtype, args.revision)
    print_drift(drift, f"{args.input} against the training of {args.model}", args.alarm, args.top)
    return 1 if drift.alarms(args.alarm) else 0


def edit_command(args: argparse.Namespace) -> None:
    """`sparserm edit`."""
    factors = {latent: _factor(latent, text) for latent, text in args.steer}
    if not factors and not args.label:
        raise SparseRMError("There is nothing to edit: use --steer LATENT=FACTOR or --label LATENT=NAME.")
    rows = load_preferences(args.dataset, args.split) if args.dataset else None
    effect = edit_model(args.model, args.output_dir, factors, dict(args.label), rows, args.revision, args.cache_dir)
    if not process_state().is_main_process:
        return
    if effect:
        print_effect(effect, f"{args.model} on {args.dataset}")
    unmeasured = "" if effect or not factors else " Its effect was not measured: name pairs with --dataset."
    say(f"Wrote {args.output_dir}.{unmeasured}")
