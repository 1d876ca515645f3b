"""A reward model as one HTML file: how good it is, which features decide, what it makes of pairs, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from tqdm.auto import tqdm
from transformers.utils import cached_file

from ..checkpoints import replacing_file
from ..conversations.pairs import TokenizedPreferences
from ..errors import SparseRMError
from ..evaluation.evaluate import EVALUATION_FILE, Evaluation, SavedRewardModel
from ..evaluation.plots import as_svg, draw_accuracy, draw_calibration, draw_length, draw_stability
from ..version import __version__
from .attribution import LatentEffect, TextExplanation, contrast, explain_tokens
from .latents import LatentReport, report_latents

GENERATOR = '<meta name="generator" content="sparserm-hf'
LATENTS = 40  # in the table of features
PASSAGES = 3  # of each, strongest and weakest
TOP = 6  # latents that explain a pair
MOST_TOKENS = 300  # of a response, or of a prompt, that are shown


@dataclass(frozen=True)
class Side:
    """A response of a pair.

    Attributes:
        name: `chosen` or `rejected`.
        explanation: Why it got its reward.
        colours: What each token that is shown added, as a share of the most that one added, by latent id; under `all`
            through all latents together.
        left_out: Tokens that are not shown.
    """

    name: str
    explanation: TextExplanation
    colours: dict[str, list[float]]
    left_out: int


@dataclass(frozen=True)
class Pair:
    """A pair that is explained: what was asked, its sides, and the latents that make the difference.

    Attributes:
        prompt: The end of it.
        margin: Reward difference.
        probability: That chosen is preferred.
        sides: Chosen and rejected.
        latents: Those that add most to the difference, with what they add.
    """

    prompt: str
    margin: float
    probability: float
    sides: tuple[Side, Side]
    latents: list[tuple[LatentEffect, float]]


def check_report(output: Path) -> None:
    """Raise a `SparseRMError` unless a report may be written there: in a folder, over nothing but a report."""
    if output.exists() and GENERATOR not in output.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise SparseRMError(f"{output} exists already and is not a report: name another file, or remove it.")
    if not output.parent.is_dir():
        raise SparseRMError(f"There is no folder {output.parent} to write {output.name} into: make it first.")


def write_report(
    name: str,
    saved: SavedRewardModel,
    output: Path,
    pairs: TokenizedPreferences | None = None,
    examples: int = 24,
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> None:
    """Write the report on a reward model.

    Args:
        name: Folder or Hub id of the reward model.
        saved: The reward model.
        output: The file.
        pairs: Preference pairs to measure it on and to show; without them the report tells what the checkpoint knows.
        examples: Pairs to show, from those that it gets most wrong to those that it gets most right.
        revision: Of the reward model on the Hub.
        cache_dir: Where representations are kept.
    """
    config = saved.model.config
    latents, shown = [], []
    if pairs is None:
        evaluation = _stored_evaluation(name, revision)
    else:
        evaluation = saved.evaluate(pairs, cache_dir)
        latents = report_latents(saved, pairs, LATENTS, PASSAGES, cache_dir)
        shown = _explain_pairs(saved, pairs, evaluation, examples)
    plots = {}
    if evaluation:
        for title, draw in (
            ("Accuracy beside the controls", draw_accuracy),
            ("Accuracy by which response is longer", draw_length),
            ("Calibration", draw_calibration),
        ):
            plots[title] = Markup(as_svg(partial(draw, evaluation=evaluation), title))
    if None not in config.latent_stabilities:
        title = "Stability of the selected latents"
        plots[title] = Markup(as_svg(partial(draw_stability, stabilities=config.latent_stabilities), title))
    environment = Environment(
        loader=PackageLoader("sparserm_hf.explain", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html").render(
        name=Path(name).name,
        version=__version__,
        config=config,
        base=Path(config.base_model_name_or_path).name,
        evaluation=evaluation,
        plots=plots,
        latents=latents or _known_latents(saved),
        pairs=shown,
        most=MOST_TOKENS,
    )
    with replacing_file(output) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _stored_evaluation(name: str, revision: str | None) -> Evaluation | None:
    file = cached_file(name, EVALUATION_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Evaluation.load(Path(file)) if file else None


def _known_latents(saved: SavedRewardModel) -> list[LatentReport]:
    """What a checkpoint alone says of its latents, the largest separations first."""
    config, k = saved.model.config, len(saved.model.config.latents)
    weight = saved.model.score.weight[0].tolist() if config.head_type == "linear" else []
    order = np.argsort(-np.abs(config.latent_separations), kind="stable")[:LATENTS].tolist()
    return [
        LatentReport(
            latent=(latent := config.latents[i]),
            side=config.latent_sides[i],
            label=config.latent_labels.get(str(latent), ""),
            promotes=config.latent_promotes[i],
            suppresses=config.latent_suppresses[i],
            link=config.latent_link(latent),
            stability=config.latent_stabilities[i],
            separation=config.latent_separations[i],
            weights=dict(zip(config.readings, weight[i::k], strict=True)) if weight else {},
            importance=0.0,
            firing_chosen=None,
            firing_rejected=None,
            length_correlation=0.0,
            strongest=[],
            weakest=[],
        )
        for i in order
    ]


def _explain_pairs(
    saved: SavedRewardModel, pairs: TokenizedPreferences, evaluation: Evaluation, count: int
) -> list[Pair]:
    """Pairs spread evenly over the margins, from the lowest to the highest."""
    margins = evaluation.margins["SparseRM"]
    order = np.argsort(margins, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    return [_explain_pair(saved, pairs, int(i)) for i in tqdm(picked, desc="Explaining", unit="pair", delay=2)]


def _explain_pair(saved: SavedRewardModel, pairs: TokenizedPreferences, number: int) -> Pair:
    model, tokenizer = saved.model, saved.tokenizer
    texts = [pairs.texts[side[number]] for side in (pairs.chosen, pairs.rejected)]
    chosen, rejected = (explain_tokens(model, tokenizer, text) for text in texts)
    difference = dict(list(contrast(chosen, rejected).items())[:TOP])
    effects = {effect.latent: effect for effect in chosen.latents}
    prompt = list(texts[0].ids[: texts[0].start])
    margin = chosen.reward - rejected.reward
    return Pair(
        prompt=str(tokenizer.decode(prompt[-MOST_TOKENS:], skip_special_tokens=True)).strip(),
        margin=margin,
        probability=float(1 / (1 + np.exp(-margin / model.config.reward_temperature))),
        sides=(_side("chosen", chosen, list(difference)), _side("rejected", rejected, list(difference))),
        latents=[(effects[latent], part) for latent, part in difference.items()],
    )


def _side(name: str, explanation: TextExplanation, latents: list[int]) -> Side:
    effects = {effect.latent: effect for effect in explanation.latents}
    values: dict[str, Any] = {"all": [token.contribution for token in explanation.tokens]}
    values |= {str(latent): effects[latent].tokens for latent in latents}
    colours = {}
    for key, of_tokens in values.items():
        largest = max(map(abs, of_tokens), default=0.0) or 1.0
        colours[key] = [round(value / largest, 2) for value in of_tokens[:MOST_TOKENS]]
    return Side(name, explanation, colours, max(len(explanation.tokens) - MOST_TOKENS, 0))
