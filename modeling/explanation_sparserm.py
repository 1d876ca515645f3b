"""Explanations of rewards: an exact sum over latents and tokens, and the reward without one latent's part."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone_sparserm import residual_stream
from .pooling_sparserm import normalised_tokens, pooled_tokens, root_mean_square


class Explanation(NamedTuple):
    """Explanation of the rewards of B texts.

    With a linear head exactly, but for rounding: `reward = bias + (weight * features).sum(-1)`. A feature is never
    zero, so what a latent adds is told against the average training response: `reward = base + contributions.sum(-1)`,
    and `contributions = token_contributions.sum(1)` but for an empty response, which has no tokens.

    Attributes:
        reward: (B,) as `forward` gives it.
        bias: (B,)
        weight: (B, K)
        features: (B, K), steered.
        base: () reward of the average training response.
        contributions: (B, K) `weight * (features - feature_mean)`: what the reward loses if the latent's feature is
            set to its training average.
        token_contributions: (B, T, K) what each token adds; zero for tokens that are not pooled.
        running_reward: (B, T) the reward if the text had ended after each token of the response; `base` elsewhere.
        response: (B, T) bool: the tokens of the response.
    """

    reward: torch.Tensor
    bias: torch.Tensor
    weight: torch.Tensor
    features: torch.Tensor
    base: torch.Tensor
    contributions: torch.Tensor
    token_contributions: torch.Tensor
    running_reward: torch.Tensor
    response: torch.Tensor


class RunTexts(NamedTuple):
    """Residual streams of B texts.

    Attributes:
        hidden: (B, T, d_model) their residual streams.
        pooled: (B, T) bool: the tokens that are averaged.
        response: (B, T) bool: the tokens of the response, among them those that are averaged.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    response: torch.Tensor


@torch.no_grad()
def run_texts(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    responses: Sequence[tuple[int, int]],
) -> RunTexts:
    """Run a reward model's base model on texts.

    Args:
        model: The reward model.
        input_ids: (B, T)
        attention_mask: (B, T)
        responses: Where the response of each text stands, see `find_responses`.
    """
    hidden = residual_stream(model.model, input_ids, attention_mask)
    along = "mean" if model.config.pooling == "mean" else "response_mean"
    pooled, response = (
        pooled_tokens(attention_mask, responses, pooling).to(hidden.device)
        for pooling in (model.config.pooling, along)
    )
    return RunTexts(hidden, pooled, pooled | response)


@torch.no_grad()
def explain_rewards(model: PreTrainedModel, texts: RunTexts, weight: torch.Tensor | None = None) -> Explanation:
    """Explain the rewards of texts.

    Args:
        model: The reward model.
        texts: B texts.
        weight: (B, K) what a unit of each feature is taken to add; by default the weights of a linear head.

    Raises:
        ValueError: No weight, where the head is an MLP.
    """
    config = model.config
    if weight is None:
        if config.head_type != "linear":
            raise ValueError(
                "The reward of an MLP head is not a sum over its features: sparserm_hf.explain attributes it by "
                "integrated gradients."
            )
        weight = model.score.weight.detach().expand(len(texts.hidden), -1)
    hidden, pooled, response = texts
    with torch.autocast(hidden.device.type, enabled=False):
        tokens = normalised_tokens(hidden, response, config.representation_norm)
        projections = tokens @ model.directions.to(tokens).T  # (B, T, K)
        average, factors = (x.to(projections) for x in (model.feature_mean, model.steering_factors()))
        weight = weight.to(average)
        share = pooled / pooled.sum(1, keepdim=True).clamp(min=1)  # (B, T) of each token in the average
        token_contributions = weight.unsqueeze(1) * factors * share.unsqueeze(-1) * (projections - average)
        so_far = projections  # (B, T, K) the features if the text had ended after each token
        if config.pooling != "last":
            so_far = projections.cumsum(1) / response.cumsum(1).clamp(min=1).unsqueeze(-1)
        so_far = average + factors * torch.where(response.unsqueeze(-1), so_far - average, 0.0)
        features = model.features_of(hidden, pooled)
        base = model.reward(average[None])[0, 0]
        return Explanation(
            reward=model.reward(features)[:, 0],
            bias=base - weight @ average,
            weight=weight,
            features=features,
            base=base,
            contributions=weight * (features - average),
            token_contributions=token_contributions,
            running_reward=model.reward(so_far.flatten(0, 1)).view(response.shape),
            response=response,
        )


@torch.no_grad()
def rewards_at_average(model: PreTrainedModel, latents: list[int], texts: RunTexts) -> torch.Tensor:
    """Compute rewards (B, len(latents)) with each latent set to its training average in the residual stream.

    With u the unit vector along the latent's direction, the part h . u of every pooled token h is replaced by the
    average of the latent's feature, times the token's root mean square where that is divided by. Only then is the
    token read again, from its norm on. So the reward may change by something else than what the latent adds: where
    directions overlap, the features of others change too, and in any case the token's root mean square does.

    Args:
        model: The reward model.
        latents: Ids of selected latents.
        texts: B texts.
    """
    hidden, rewards = torch.where(texts.pooled.unsqueeze(-1), texts.hidden, 0.0).float(), []
    with torch.autocast(hidden.device.type, enabled=False):
        size = torch.ones_like(hidden[..., 0])  # (B, T)
        if model.config.representation_norm == "rms":
            size = root_mean_square(hidden)
        for latent in latents:
            number = model.config.latent_ids.index(latent)
            direction = model.directions[number].to(hidden)
            average = model.feature_mean[number].to(hidden) / direction.norm()
            direction = nn.functional.normalize(direction, dim=0)
            change = average * size - hidden @ direction  # (B, T)
            at_average = hidden + change.unsqueeze(-1) * direction
            rewards.append(model.reward(model.features_of(at_average, texts.pooled))[:, 0])
    return torch.stack(rewards, 1)
