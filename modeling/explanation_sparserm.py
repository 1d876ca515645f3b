"""Explain rewards: an exact sum over latents and tokens, and the reward with one latent set to its average."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone_sparserm import residual_stream
from .pooling_sparserm import normalised_tokens, pooled_tokens, root_mean_square


class Explanation(NamedTuple):
    """Explanation of the rewards of B texts.

    With a linear head, `reward = bias + (weight * features).sum(-1)`, exact but for rounding. A feature is almost
    never zero, so contributions are measured from the average training response: `reward = base +
    contributions.sum(-1)`, and `contributions = token_contributions.sum(1)` except for an empty response, which has no
    tokens. With pessimism, `reward` and `base` are lower by their own `pessimism * deviation`, and both sums miss the
    difference of these two amounts.

    Attributes:
        reward: (B,) rewards, as `forward` returns them.
        bias: (B,) bias of the head.
        weight: (B, K) weights of the head.
        features: (B, K) input features of the head, after steering.
        base: () reward of the average training response; (B,) with a gate, as it then depends on the prompt.
        contributions: (B, K) `weight * (features - feature_mean)`: the loss of reward if the latent's feature is set
            to its training average.
        token_contributions: (B, T, K) contribution of each token; zero for tokens that are not pooled.
        running_reward: (B, T) reward if the text had ended after each token of the response; `base` elsewhere.
        response: (B, T) bool, true for the tokens of the response; with `pooling="mean"`, of the prompt too.
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
        hidden: (B, T, d_model) residual streams.
        pooled: (B, T) bool, true for the tokens that are averaged.
        response: (B, T) bool, true for the tokens of the response and for all averaged tokens, which with
            `pooling="mean"` are those of the prompt too.
        prompt: (B, d_model) average tokens of the prompts; None without a gate.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    response: torch.Tensor
    prompt: torch.Tensor | None


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
        input_ids: (B, T) token ids.
        attention_mask: (B, T) attention mask.
        responses: Place of the response in each text, see `find_responses`.
    """
    hidden = residual_stream(model.model, input_ids, attention_mask)
    along = "mean" if model.config.pooling == "mean" else "response_mean"
    pooled, response = (
        pooled_tokens(attention_mask, responses, pooling).to(hidden.device)
        for pooling in (model.config.pooling, along)
    )
    prompt = model.average_prompt(hidden, input_ids, attention_mask, responses)
    return RunTexts(hidden, pooled, pooled | response, prompt)


@torch.no_grad()
def explain_rewards(model: PreTrainedModel, texts: RunTexts, weight: torch.Tensor | None = None) -> Explanation:
    """Explain the rewards of texts.

    Args:
        model: The reward model.
        texts: B texts.
        weight: (B, K) weight of each feature; by default the weights of a linear head, for these prompts.

    Raises:
        ValueError: The head is an MLP, and no weight is given.
    """
    config, shares = model.config, model.shares_of(texts.prompt)
    if weight is None:
        if config.head_type != "linear":
            raise ValueError(
                "The reward of an MLP head is not a sum over its features: call sparserm_hf.explain, which attributes "
                "it by integrated gradients."
            )
        weight = model.effective_weights(shares).expand(len(texts.hidden), -1)
    hidden, pooled, response, _ = texts
    with torch.autocast(hidden.device.type, enabled=False):
        tokens = normalised_tokens(hidden, response, config.representation_norm)
        projections = tokens @ model.directions.to(tokens).T  # (B, T, K)
        average, factors = (x.to(projections) for x in (model.feature_mean, model.steering_factors()))
        weight = weight.to(average)
        share = pooled / pooled.sum(1, keepdim=True).clamp(min=1)  # (B, T) weight of each token in the average
        token_contributions = weight.unsqueeze(1) * factors * share.unsqueeze(-1) * (projections - average)
        so_far = projections  # (B, T, K) the features if the text had ended after each token
        if config.pooling != "last":
            so_far = projections.cumsum(1) / response.cumsum(1).clamp(min=1).unsqueeze(-1)
        so_far = average + factors * torch.where(response.unsqueeze(-1), so_far - average, 0.0)
        features = model.features_of(hidden, pooled)
        base = model.reward(average.expand_as(features), shares)[:, 0]
        of_tokens = None if shares is None else shares.repeat_interleave(response.shape[1], 0)
        return Explanation(
            reward=model.reward(features, shares)[:, 0],
            bias=base - weight @ average,
            weight=weight,
            features=features,
            base=base[0] if shares is None else base,
            contributions=weight * (features - average),
            token_contributions=token_contributions,
            running_reward=model.reward(so_far.flatten(0, 1), of_tokens).view(response.shape),
            response=response,
        )


@torch.no_grad()
def rewards_at_average(model: PreTrainedModel, latents: list[int], texts: RunTexts) -> torch.Tensor:
    """Compute rewards (B, len(latents)), without pessimism, with each latent set to its training average.

    With u the unit vector along the latent's direction, the component h . u of every pooled token h is replaced by the
    average of the latent's feature, divided by the direction's norm; with `representation_norm="rms"`, times the
    token's root mean square. Then the tokens are normalised and projected anew. The reward may change by another
    amount than the latent's contribution: the token's root mean square changes, and so do the features of other
    latents whose directions overlap.

    Args:
        model: The reward model.
        latents: Ids of selected latents.
        texts: B texts.
    """
    hidden, rewards = torch.where(texts.pooled.unsqueeze(-1), texts.hidden, 0.0).float(), []
    shares = model.shares_of(texts.prompt)  # the prompt is not changed
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
            features = model.features_of(at_average, texts.pooled)
            rewards.append(model.reward(features, shares, pessimistic=False)[:, 0])
    return torch.stack(rewards, 1)
