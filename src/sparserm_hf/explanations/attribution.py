"""What each latent and each token added to a reward, checked in the residual stream."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..conversations import GivenText, TokenizedText, token_text
from ..modeling.explanation_sparserm import RunTexts, explain_rewards, rewards_at_average, run_texts
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, as_numpy
from ..scoring import encoder_of

INTERVENTIONS = 10  # latents of each text that are set to their average, those that add most
AGREEMENT = 0.1  # of a latent's contribution: how far the reward may be from what that says
ROUNDING = 1e-5  # of a reward, in float32
IG_STEPS = 256  # of integrated gradients


@dataclass(frozen=True)
class LatentEffect:
    """What a selected latent did to a reward.

    Attributes:
        latent: Its id in the SAE.
        side: The side that it was selected for, `chosen` or `rejected`.
        name: Its name, see `SparseRMConfig.latent_name`.
        name_f1: How well the name predicts where it fires (F1 on held-out responses); None if it was not tested.
        purity: Cosine between its direction and the SAE's own decoder direction.
        value: Its feature: the projection of the average token on its direction.
        average: The same of the average training response.
        contribution: What it added to the reward: what the reward loses when `value` becomes `average`.
        own: The same number, under the name that versions before 0.3 gave to what the check is held against.
        tokens: What each token of the response added through it.
        removed: How the reward changes when the latent's part of every pooled token of the residual stream is set to
            its training average; None where that was not tried.
    """

    latent: int
    side: str
    name: str
    name_f1: float | None
    purity: float
    value: float
    average: float
    contribution: float
    own: float
    tokens: list[float]
    removed: float | None

    @property
    def as_stated(self) -> bool | None:
        """Whether the reward then loses the contribution, to a tenth of it; None where that was not tried."""
        if self.removed is None:
            return None
        return abs(self.removed + self.contribution) <= AGREEMENT * abs(self.contribution) + ROUNDING


@dataclass(frozen=True)
class TokenEffect:
    """A token of the response: what it added to the reward, and the reward if the text had ended with it."""

    text: str
    contribution: float
    running_reward: float


@dataclass(frozen=True)
class TextExplanation:
    """Why a text got its reward: `reward = base + sum of contributions + unexplained`.

    Attributes:
        reward: As `sparserm score` gives it.
        base: The reward of the average training response.
        latents: All of the model's, those with the largest contributions first.
        tokens: Of the response.
        unexplained: What the contributions leave: a rounding error with a linear head; with an MLP, by how much
            integrated gradients miss the reward.
    """

    reward: float
    base: float
    latents: list[LatentEffect]
    tokens: list[TokenEffect]
    unexplained: float


def explain(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    text: GivenText,
    max_length: int | None = None,
) -> TextExplanation:
    """Say why a text gets its reward.

    With a linear head the sum is exact. With an MLP head each feature is attributed by integrated gradients
    (Sundararajan et al., 2017, arXiv 1703.01365) from the average training response, by captum.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        text: A string, or messages that end with the assistant's.
        max_length: A longer text loses its start; by default it may be as long as in training.

    Raises:
        SparseRMError: The text is empty, or captum is missing.
    """
    return explain_tokens(model, tokenizer, encoder_of(model, tokenizer, max_length)(text))


def explain_tokens(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, text: TokenizedText
) -> TextExplanation:
    """Say why a tokenised text gets its reward; see `explain`."""
    ids = list(text.ids)
    input_ids = torch.tensor([ids], device=model.directions.device)
    texts = run_texts(model, input_ids, torch.ones_like(input_ids), [text.place])
    weight = None if model.config.head_type == "linear" else _average_gradient(model, texts)
    found = explain_rewards(model, texts, weight)
    config, contributions = model.config, found.contributions[0]
    largest = contributions.abs().argsort(descending=True).tolist()
    tried = largest[:INTERVENTIONS] if texts.pooled.any() else []  # an empty response has no token to change
    changed = rewards_at_average(model, [config.latents[i] for i in tried], texts)[0] if tried else []
    removed = {i: float(reward - found.reward[0]) for i, reward in zip(tried, changed, strict=True)}
    response = found.response[0].nonzero()[:, 0]
    parts = found.token_contributions[0, response]  # (tokens, K)
    latents = [
        LatentEffect(
            latent=config.latents[i],
            side=config.latent_sides[i],
            name=config.latent_name(i),
            name_f1=config.latent_name_f1(i),
            purity=config.latent_purities[i],
            value=float(found.features[0, i]),
            average=float(model.feature_mean[i]),
            contribution=float(contributions[i]),
            own=float(contributions[i]),
            tokens=parts[:, i].tolist(),
            removed=removed.get(i),
        )
        for i in largest
    ]
    tokens = [
        TokenEffect(token_text(tokenizer, ids, t), float(part.sum()), float(found.running_reward[0, t]))
        for t, part in zip(response.tolist(), parts, strict=True)
    ]
    reward, base = float(found.reward[0]), float(found.base)
    return TextExplanation(reward, base, latents, tokens, reward - base - float(contributions.sum()))


def _average_gradient(model: SparseRMForSequenceClassification, texts: RunTexts) -> torch.Tensor:
    """(1, K) gradient of the reward by each feature, averaged from the average response to this one."""
    try:
        from captum.attr import IntegratedGradients  # it brings matplotlib: only where it is needed
    except ModuleNotFoundError:
        raise SparseRMError(
            "An MLP head is explained with captum: install the extra `explain`, as in pip install '.[explain]'."
        ) from None
    with torch.no_grad():
        features = model.features_of(texts.hidden, texts.pooled)
    integrated = IntegratedGradients(model.reward, multiply_by_inputs=False)
    return integrated.attribute(features, model.feature_mean[None], target=0, n_steps=IG_STEPS).to(features)


def contrast(chosen: TextExplanation, rejected: TextExplanation) -> dict[int, float]:
    """What each latent adds to the difference of two rewards, by its id, the largest first."""
    difference: dict[int, float] = defaultdict(float)
    for sign, explanation in ((1.0, chosen), (-1.0, rejected)):
        for effect in explanation.latents:
            difference[effect.latent] += sign * effect.contribution
    return dict(sorted(difference.items(), key=lambda item: -abs(item[1])))


def group_contributions(model: SparseRMForSequenceClassification, features: np.ndarray) -> dict[str, np.ndarray]:
    """What the latents selected for one side add to the rewards of a linear head, (N,) for each side.

    What a latent adds is told against the average training response, as everywhere: the two groups' sum is the reward
    minus that of the average response. An MLP's reward is no such sum: there are no groups.

    Args:
        model: The reward model.
        features: (N, K) what its head read.
    """
    config = model.config
    if config.head_type != "linear":
        return {}
    weight = as_numpy(model.score.weight[0])
    parts = weight * (features - as_numpy(model.feature_mean))
    sides = np.array(config.latent_sides)
    return {side: parts[:, sides == side].sum(1) for side in ("chosen", "rejected")}
