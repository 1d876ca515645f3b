"""Check how many claims of explanations hold, for cards and reports, by interventions in the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from ..conversations import TokenizedPreferences, TokenizedText
from ..modeling.backbone_sparserm import residual_stream
from ..modeling.explanation_sparserm import RunTexts, explain_rewards, rewards_at_average
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..modeling.pooling_sparserm import pooled_tokens

AGREEMENT = 0.1  # largest difference between a contribution and the measured change, as a share of the contribution
ROUNDING = 1e-5  # rounding error of a reward in float32
INTERVENTIONS = 10  # number of latents of a text that are set to their average: those with the largest contributions
MOST_PROMPTS = 20  # number of prompts whose responses are explained: the base model runs once more for each response


@dataclass(frozen=True)
class CheckedClaims:
    """The number of checked claims of explanations, and the number of claims that hold.

    A claim is "this latent adds c to the reward". The claim holds if the reward falls by c, to within 10%, when the
    latent's part of the residual stream is set to its training average.

    Attributes:
        responses: Number of responses that were explained.
        claims: Number of claims.
        held: Number of claims that hold.
    """

    responses: int
    claims: int
    held: int


def holds(contribution: float, removed: float) -> bool:
    """Tell if a claim holds.

    Args:
        contribution: Amount that the latent adds to the reward, as claimed.
        removed: Measured change of the reward when the latent's part is set to its training average.

    Example:
        >>> holds(0.50, removed=-0.46), holds(0.50, removed=-0.40)
        (True, False)
    """
    return abs(removed + contribution) <= AGREEMENT * abs(contribution) + ROUNDING


def check_claims(
    model: SparseRMForSequenceClassification, base_model: PreTrainedModel, pairs: TokenizedPreferences
) -> CheckedClaims | None:
    """Check the largest claims about both responses to the first prompts of some preference pairs.

    Args:
        model: The reward model.
        base_model: The cut base model, in the data type that it runs in.
        pairs: Preference pairs.

    Returns:
        The result; None for an MLP head, whose reward is not a sum over latents.
    """
    if model.config.head_type != "linear":
        return None
    numbers = np.sort(np.unique(pairs.groups, return_index=True)[1])[:MOST_PROMPTS]  # one pair a prompt
    texts = [pairs.texts[of[i]] for i in numbers for of in (pairs.chosen, pairs.rejected)]
    checked = [claim for text in texts for claim in _check(model, base_model, text)]
    return CheckedClaims(len(texts), len(checked), sum(checked))


def _check(model: SparseRMForSequenceClassification, base_model: PreTrainedModel, text: TokenizedText) -> list[bool]:
    ids = torch.tensor([text.ids], device=base_model.device)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        hidden = residual_stream(base_model, ids, mask)
    pooled = pooled_tokens(mask, [text.place], model.config.pooling).to(hidden.device)
    run = RunTexts(hidden, pooled, pooled, model.average_prompt(hidden, ids, mask, [text.place]))
    found = explain_rewards(model, run)
    contributions = found.contributions[0]
    largest = contributions.abs().argsort(descending=True)[:INTERVENTIONS].tolist()
    removed = measure_removals(model, run, largest)
    return [holds(float(contributions[i]), change) for i, change in removed.items()]


def measure_removals(
    model: SparseRMForSequenceClassification, texts: RunTexts, columns: list[int]
) -> dict[int, float]:
    """Measure how the reward of a text changes when a latent's part of its pooled tokens is set to its average.

    Each latent is changed alone, and the result is given by its column. Pessimism is left out of the rewards, as it is
    left out of the contributions.
    """
    if not texts.pooled.any():  # an empty response has no token to change
        return {}
    with torch.no_grad():
        features, shares = model.features_of(texts.hidden, texts.pooled), model.shares_of(texts.prompt)
        reward = model.reward(features, shares, pessimistic=False)[0, 0]
    changed = rewards_at_average(model, [model.config.latents[i].id for i in columns], texts)[0]
    return {i: float(of_latent - reward) for i, of_latent in zip(columns, changed, strict=True)}
