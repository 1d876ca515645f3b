"""What each feature and each token added to a reward, checked by taking directions out of the residual stream."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ..conversations.encoding import TokenizedText
from ..conversations.messages import GivenText
from ..errors import SparseRMError
from ..modeling.explanation_sparserm import RunTexts, explain_rewards, remove_directions, run_texts
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..scoring import encoder_of

INTERVENTIONS = 10  # latents of each text whose direction is taken out, those that add most
AGREEMENT = 0.1  # of a latent's contribution: how far the reward without it may be from what that says
ROUNDING = 1e-5  # of a reward, in float32
IG_STEPS = 256  # of integrated gradients


@dataclass(frozen=True)
class LatentEffect:
    """What a selected latent did to a reward.

    Attributes:
        latent: Its id in the SAE.
        side: The side that it was selected for, `chosen` or `rejected`.
        label: What its user calls it.
        promotes: Words that its direction promotes, most first.
        values: What was read of it, by reading.
        averages: The same of the average training response.
        contribution: What it added to the reward, against the average training response.
        own: What the projection or activation itself carries of the reward: weight times value, against zero.
        tokens: What each token of the response added through it, against the average training response.
        removed: How the reward changes when its decoder direction is taken out of the residual stream; None where that
            was not tried.
    """

    latent: int
    side: str
    label: str
    promotes: list[str]
    values: dict[str, float]
    averages: dict[str, float]
    contribution: float
    own: float
    tokens: list[float]
    removed: float | None

    @property
    def as_stated(self) -> bool | None:
        """Whether taking the direction out takes away what it carries, within 10%; None where it was not tried."""
        if self.removed is None:
            return None
        return abs(self.removed + self.own) <= AGREEMENT * abs(self.own) + ROUNDING


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


def explain_text(
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
    """Say why a tokenised text gets its reward; see `explain_text`."""
    ids = list(text.ids)
    input_ids = torch.tensor([ids], device=model.directions.device)
    texts = run_texts(model, input_ids, torch.ones_like(input_ids), [text.place])
    weight = None if model.config.head_type == "linear" else _average_gradient(model, texts)
    found = explain_rewards(model, texts, weight)
    config, k = model.config, len(model.config.latents)
    by_latent = found.contributions[0].view(-1, k).sum(0)  # over readings
    unsteered = (
        found.features - (1 - model.steering_factors()) * model.feature_mean
    )  # steering leaves a part of the mean
    own = (found.weight * unsteered)[0].view(-1, k).sum(0) * found.response.any()  # nothing read, nothing carried
    largest = by_latent.abs().argsort(descending=True).tolist()
    tried = largest[:INTERVENTIONS]
    without = remove_directions(model, [config.latents[i] for i in tried], texts)[0]
    removed = dict(zip(tried, (without - found.reward[0]).tolist(), strict=True))
    response = found.response[0].nonzero()[:, 0]
    parts = found.token_contributions[0, response]  # (tokens, F)
    tokens_by_latent = parts.unflatten(-1, (len(config.readings), k)).sum(1).T  # (K, tokens)
    values, averages = (x.view(-1, k).T.tolist() for x in (found.features[0], model.feature_mean))
    latents = [
        LatentEffect(
            latent=config.latents[i],
            side=config.latent_sides[i],
            label=config.latent_labels.get(str(config.latents[i]), ""),
            promotes=config.latent_promotes[i],
            values=dict(zip(config.readings, values[i], strict=True)),
            averages=dict(zip(config.readings, averages[i], strict=True)),
            contribution=float(by_latent[i]),
            own=float(own[i]),
            tokens=tokens_by_latent[i].tolist(),
            removed=removed.get(i),
        )
        for i in largest
    ]
    of_tokens = found.token_contributions[0].sum(-1)
    tokens = [
        TokenEffect(token_text(tokenizer, ids, t), float(of_tokens[t]), float(found.running_reward[0, t]))
        for t in response.tolist()
    ]
    reward, base = float(found.reward[0]), float(found.base)
    return TextExplanation(reward, base, latents, tokens, reward - base - float(by_latent.sum()))


def token_text(tokenizer: PreTrainedTokenizerBase, ids: list[int], t: int) -> str:
    """A token as it stands in the text, with the space before it, which a tokenizer leaves out at the start."""
    before = str(tokenizer.decode(ids[t - 1 : t]))
    return str(tokenizer.decode(ids[max(t - 1, 0) : t + 1])).removeprefix(before)


def _average_gradient(model: SparseRMForSequenceClassification, texts: RunTexts) -> torch.Tensor:
    """(1, F) gradient of the reward by each feature, averaged from the average response to this one."""
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
