"""Explain preference pairs for reports: both responses token by token, and the latents behind the difference.

`explained_rows.py` explains the rows of a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from tqdm.auto import tqdm

from ..conversations import TokenizedPreferences, Turn, find_turns
from ..evaluation import SavedRewardModel
from .attribution import explain_tokens
from .text_explanation import SHOWN_TOKENS, LatentEffect, TextExplanation, contrast

TOP = 6  # number of latents that are shown for a pair


@dataclass(frozen=True)
class Segment:
    """A part of a response's bar, which shows the contribution of a latent.

    Attributes:
        number: Rank of the latent in the pair's list, from 1; 0 for all other latents together.
        value: The contribution.
        start: Left end, in % of the bar's width.
        width: Width, in % of the bar's width.
    """

    number: int
    value: float
    start: float
    width: float


@dataclass(frozen=True)
class ExplainedResponse:
    """A response of a pair.

    Attributes:
        name: `chosen` or `rejected`.
        explanation: Explanation of its reward.
        bar: Contributions of the latents, side by side.
        zero: Position of the average response's reward, in % of the bar's width.
        total: Position of the reward, in % of the bar's width.
        colours: Contributions of the tokens, divided by the largest absolute value, from -1 to 1: by latent id, and
            summed over all latents under `all`. The last tokens of a long response are left out.
        left_out: Number of tokens that are left out.
    """

    name: str
    explanation: TextExplanation
    bar: list[Segment]
    zero: float
    total: float
    colours: dict[str, list[float]]
    left_out: int


@dataclass(frozen=True)
class ExplainedPair:
    """A preference pair with the explanations of both rewards.

    Attributes:
        turns: Turns of the prompt.
        margin: Reward difference, chosen minus rejected.
        probability: Probability that the chosen response is preferred.
        sides: The chosen and the rejected response.
        latents: The latents with the largest contributions to the difference. Each has its effect on the chosen
            response, its effect on the rejected response, and the difference of the two contributions.
    """

    turns: list[Turn]
    margin: float
    probability: float
    sides: tuple[ExplainedResponse, ExplainedResponse]
    latents: list[tuple[LatentEffect, LatentEffect, float]]

    @property
    def asked(self) -> str:
        """Last 160 characters of the prompt's last turn."""
        return self.turns[-1].content[-160:] if self.turns else ""


def explain_pairs(
    saved: SavedRewardModel, pairs: TokenizedPreferences, margins: np.ndarray, count: int
) -> list[ExplainedPair]:
    """Explain some pairs, spread evenly over the margins, from the lowest to the highest margin.

    Args:
        saved: The reward model.
        pairs: N preference pairs.
        margins: (N,) reward differences, chosen minus rejected.
        count: Number of pairs to explain.
    """
    order = np.argsort(margins, kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    return [explain_pair(saved, pairs, int(i)) for i in tqdm(picked, desc="Explaining", unit="pair", delay=2)]


def explain_pair(saved: SavedRewardModel, pairs: TokenizedPreferences, number: int) -> ExplainedPair:
    """Explain a pair.

    Args:
        saved: The reward model.
        pairs: Preference pairs.
        number: Index of the pair.
    """
    model, tokenizer = saved.model, saved.tokenizer
    texts = [pairs.texts[side[number]] for side in (pairs.chosen, pairs.rejected)]
    chosen, rejected = (explain_tokens(model, tokenizer, text) for text in texts)
    difference = list(contrast(chosen, rejected).items())[:TOP]
    shown = [latent for latent, _ in difference]
    parts = [_parts(side, shown) for side in (chosen, rejected)]
    low = min(sum(min(part, 0.0) for part in of_side) for of_side in parts)
    high = max(sum(max(part, 0.0) for part in of_side) for of_side in parts)
    effects = [{effect.latent: effect for effect in side.latents} for side in (chosen, rejected)]
    margin = chosen.reward - rejected.reward
    return ExplainedPair(
        turns=find_turns(texts[0].ids[: texts[0].turn or texts[0].start], tokenizer, model.config.response_marks),
        margin=margin,
        probability=float(expit(margin / model.config.reward_temperature)),
        sides=(
            _side("chosen", chosen, shown, parts[0], low, high),
            _side("rejected", rejected, shown, parts[1], low, high),
        ),
        latents=[(effects[0][latent], effects[1][latent], part) for latent, part in difference],
    )


def _parts(explanation: TextExplanation, latents: list[int]) -> list[float]:
    """List the contributions of some latents, followed by the sum of all other contributions."""
    added = {effect.latent: effect.contribution for effect in explanation.latents}
    parts = [added[latent] for latent in latents]
    return [*parts, explanation.reward + explanation.penalty - explanation.base - sum(parts)]


def _side(
    name: str, explanation: TextExplanation, latents: list[int], parts: list[float], low: float, high: float
) -> ExplainedResponse:
    """Draw the bar of a response on a scale from `low` to `high`, and colour its tokens."""
    scale = 100 / ((high - low) or 1.0)
    bar, ends = [], {True: 0.0, False: 0.0}  # ends of the bar so far, to the right and to the left of zero
    for i, part in enumerate(parts):
        number = (i + 1) % len(parts)  # 0 for all other latents, which come last
        right = part > 0
        start = ends[right] + (0.0 if right else part)
        ends[right] += part
        bar.append(Segment(number, part, (start - low) * scale, abs(part) * scale))
    by_latent = {effect.latent: effect.tokens for effect in explanation.latents}
    values = {"all": [token.contribution for token in explanation.tokens]}
    values |= {str(latent): by_latent[latent] for latent in latents}
    return ExplainedResponse(
        name=name,
        explanation=explanation,
        bar=bar,
        zero=-low * scale,
        total=(sum(parts) - low) * scale,
        colours={key: _shares(of_tokens) for key, of_tokens in values.items()},
        left_out=max(len(explanation.tokens) - SHOWN_TOKENS, 0),
    )


def _shares(values: list[float]) -> list[float]:
    """Divide values by the largest absolute value, and keep the first ``SHOWN_TOKENS``."""
    largest = max(map(abs, values), default=0.0) or 1.0
    return [round(value / largest, 2) for value in values[:SHOWN_TOKENS]]
