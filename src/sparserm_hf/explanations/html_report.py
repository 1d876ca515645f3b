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

from ..conversations import TokenizedPreferences, Turn, find_turns
from ..evaluation import (
    EVALUATION_FILE,
    Evaluation,
    RowName,
    SavedRewardModel,
    as_svg,
    draw_accuracy,
    draw_calibration,
    draw_k,
    draw_length,
)
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import SparseRMError, __version__, replacing_file
from .attribution import LatentEffect, TextExplanation, contrast, explain_tokens
from .latent_reports import LatentReport, known_latents, report_latents

GENERATOR = '<meta name="generator" content="sparserm-hf'
LATENTS = 40  # that are listed
PASSAGES = 3  # of each, strongest and weakest
TOP = 6  # latents that explain a pair
MOST_TOKENS = 300  # of a response, that are shown
MOST_CHARACTERS = 1500  # of a turn of the prompt


@dataclass(frozen=True)
class Listed:
    """A latent in the list, with its bar.

    Attributes:
        report: What is known of it.
        value: How far it moves the reward over the pairs (its standard deviation), with the sign of its weight;
            without pairs its weight, and without a linear head its separation.
        share: `value` by the largest of all.
    """

    report: LatentReport
    value: float
    share: float


@dataclass(frozen=True)
class Segment:
    """A part of a bar: what a latent added to a reward.

    Attributes:
        number: Of the latent, from 1; 0 for all others together.
        value: What it added.
        start: Where the part begins, in % of the bar's width.
        width: How wide it is, in %.
    """

    number: int
    value: float
    start: float
    width: float


@dataclass(frozen=True)
class Side:
    """A response of a pair.

    Attributes:
        name: `chosen` or `rejected`.
        explanation: Why it got its reward.
        bar: What the latents added, side by side.
        zero: Where the bar has its zero, the reward of the average response, in %.
        total: Where the reward is, in %.
        colours: What each token that is shown added, as a share of the most that one added, by latent id; under `all`
            through all latents together.
        left_out: Tokens that are not shown.
    """

    name: str
    explanation: TextExplanation
    bar: list[Segment]
    zero: float
    total: float
    colours: dict[str, list[float]]
    left_out: int


@dataclass(frozen=True)
class Pair:
    """A pair taken apart: what was asked, its sides, and the latents that make the difference.

    Attributes:
        turns: The prompt.
        margin: Reward difference.
        probability: That chosen is preferred.
        sides: Chosen and rejected.
        latents: Those that add most to the difference: each as it is in the chosen and in the rejected response, with
            what it adds to the difference.
    """

    turns: list[Turn]
    margin: float
    probability: float
    sides: tuple[Side, Side]
    latents: list[tuple[LatentEffect, LatentEffect, float]]

    @property
    def asked(self) -> str:
        """The end of what was asked."""
        return self.turns[-1].content[-160:] if self.turns else ""


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
    shown: list[Pair] = []
    if pairs is None:
        evaluation = _stored_evaluation(name, revision)
        latents = known_latents(saved, LATENTS)
    else:
        evaluation = saved.evaluate(pairs, cache_dir)
        latents = report_latents(saved, pairs, LATENTS, PASSAGES, cache_dir)
        shown = _explain_pairs(saved, pairs, evaluation, examples)
    environment = Environment(
        loader=PackageLoader("sparserm_hf.explanations", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html").render(
        name=Path(name).name,
        version=__version__,
        config=config,
        base=Path(config.base_model_name_or_path).name,
        evaluation=evaluation,
        main_row=RowName.REWARD_MODEL,
        plots=_draw(config, evaluation),
        latents=_listed(latents),
        featured=shown[len(shown) // 2] if shown else None,
        pairs=shown[: len(shown) // 2] + shown[len(shown) // 2 + 1 :],
        claims=_count_claims(shown),
        most=MOST_CHARACTERS,
    )
    with replacing_file(output) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _draw(config: SparseRMConfig, evaluation: Evaluation | None) -> dict[str, Markup]:
    """The plots by their titles."""
    plots = {}
    if evaluation:
        for title, draw in (
            ("Accuracy beside the controls", draw_accuracy),
            ("Accuracy by which response is longer", draw_length),
            ("Calibration", draw_calibration),
        ):
            plots[title] = Markup(as_svg(partial(draw, evaluation=evaluation), title))
    if config.k_accuracies:
        title, chosen = "Accuracy by number of latents, cross-validated", len(config.latents) // 2
        plots[title] = Markup(as_svg(partial(draw_k, accuracies=config.k_accuracies, chosen=chosen), title))
    return plots


def _listed(latents: list[LatentReport]) -> list[Listed]:
    """Latents with their bars."""
    values = []
    for latent in latents:
        if latent.weight is None:
            values.append(latent.separation)
        else:
            values.append(
                latent.weight if latent.importance is None else np.copysign(latent.importance, latent.weight)
            )
    largest = max(map(abs, values), default=0.0) or 1.0
    return [
        Listed(latent, float(value), float(value / largest)) for latent, value in zip(latents, values, strict=True)
    ]


def _count_claims(pairs: list[Pair]) -> tuple[int, int]:
    """Of what latents are said to add, how many claims hold, and how many were tried."""
    effects = [effect for pair in pairs for side in pair.sides for effect in side.explanation.latents]
    tried = [effect.as_stated for effect in effects if effect.removed is not None]
    return sum(map(bool, tried)), len(tried)


def _stored_evaluation(name: str, revision: str | None) -> Evaluation | None:
    file = cached_file(name, EVALUATION_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Evaluation.load(Path(file)) if file else None


def _explain_pairs(
    saved: SavedRewardModel, pairs: TokenizedPreferences, evaluation: Evaluation, count: int
) -> list[Pair]:
    """Pairs spread evenly over the margins, from the lowest to the highest."""
    margins = evaluation.margins[RowName.REWARD_MODEL]
    order = np.argsort(margins, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    return [_explain_pair(saved, pairs, int(i)) for i in tqdm(picked, desc="Explaining", unit="pair", delay=2)]


def _explain_pair(saved: SavedRewardModel, pairs: TokenizedPreferences, number: int) -> Pair:
    model, tokenizer = saved.model, saved.tokenizer
    texts = [pairs.texts[side[number]] for side in (pairs.chosen, pairs.rejected)]
    chosen, rejected = (explain_tokens(model, tokenizer, text) for text in texts)
    difference = list(contrast(chosen, rejected).items())[:TOP]
    effects = [{effect.latent: effect for effect in side.latents} for side in (chosen, rejected)]
    margin = chosen.reward - rejected.reward
    shown = [latent for latent, _ in difference]
    parts = [_parts(side, shown) for side in (chosen, rejected)]
    low = min(sum(min(part, 0.0) for part in of_side) for of_side in parts)
    high = max(sum(max(part, 0.0) for part in of_side) for of_side in parts)
    sides = [
        _side(name, explanation, shown, of_side, low, high)
        for name, explanation, of_side in zip(("chosen", "rejected"), (chosen, rejected), parts, strict=True)
    ]
    return Pair(
        turns=find_turns(texts[0].ids[: texts[0].turn or texts[0].start], tokenizer, model.config.response_marks),
        margin=margin,
        probability=float(1 / (1 + np.exp(-margin / model.config.reward_temperature))),
        sides=(sides[0], sides[1]),
        latents=[(effects[0][latent], effects[1][latent], part) for latent, part in difference],
    )


def _parts(explanation: TextExplanation, latents: list[int]) -> list[float]:
    """What some latents added to a reward, and what all others did, together with what is unexplained."""
    added = {effect.latent: effect.contribution for effect in explanation.latents}
    parts = [added[latent] for latent in latents]
    return [*parts, explanation.reward - explanation.base - sum(parts)]


def _side(
    name: str, explanation: TextExplanation, latents: list[int], parts: list[float], low: float, high: float
) -> Side:
    scale = 100 / ((high - low) or 1.0)
    bar, ends = [], {True: 0.0, False: 0.0}  # how far the bar goes so far, to the right and to the left
    for i, part in enumerate(parts):
        number = (i + 1) % len(parts)  # 0 for all others, which come last
        right = part > 0
        start = ends[right] + (0.0 if right else part)
        ends[right] += part
        bar.append(Segment(number, part, (start - low) * scale, abs(part) * scale))
    effects = {effect.latent: effect for effect in explanation.latents}
    values: dict[str, Any] = {"all": [token.contribution for token in explanation.tokens]}
    values |= {str(latent): effects[latent].tokens for latent in latents}
    colours = {}
    for key, of_tokens in values.items():
        largest = max(map(abs, of_tokens), default=0.0) or 1.0
        colours[key] = [round(value / largest, 2) for value in of_tokens[:MOST_TOKENS]]
    left_out = max(len(explanation.tokens) - MOST_TOKENS, 0)
    return Side(name, explanation, bar, -low * scale, (sum(parts) - low) * scale, colours, left_out)
