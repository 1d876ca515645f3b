"""Why a text got its reward: an exact sum over features and tokens, and what it would be without a direction."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone_sparserm import residual_stream, root_mean_square
from .response_sparserm import pooled_tokens


class Explanation(NamedTuple):
    """Why B texts got their rewards.

    With a linear head exactly, but for rounding: `reward = bias + (weight * features).sum(-1)`. What a feature adds is
    told against the average training response, as a value alone says nothing of a feature that is never zero:
    `reward = base + contributions.sum(-1)`, and `contributions = token_contributions.sum(1)` but for an empty
    response, which has no tokens.

    Attributes:
        reward: (B,) as `forward` gives it.
        bias: (B,)
        weight: (B, F)
        features: (B, F), steered.
        base: () reward of the average training response.
        contributions: (B, F) `weight * (features - feature_mean)`.
        token_contributions: (B, T, F) what each token adds; zero for tokens that are not read.
        running_reward: (B, T) the reward if the text had ended after each token of the response; `base` elsewhere.
        response: (B, T) bool: the tokens that the reward runs over.
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
    """B texts that went through the base model.

    Attributes:
        hidden: (B, T, d_model) their residual streams.
        pooled: (B, T) bool: the tokens that are read.
        response: (B, T) bool: the tokens that the reward runs over, among them those that are read.
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


def token_shares(reading: str, values: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """How much of a text's feature each token makes, (B, T, K): the feature is the sum of share times value.

    Args:
        reading: One of ``configuration_sparserm.READINGS``.
        values: (B, T, K) what is read of each token alone.
        pooled: (B, T) bool: the tokens that are read.
    """
    where = pooled.unsqueeze(-1)
    if reading.startswith("mean"):
        return (where / where.sum(1, keepdim=True).clamp(min=1)).expand_as(values).float()
    if reading.startswith("max"):
        chosen = values.masked_fill(~where, -torch.inf).argmax(1)
    else:
        index = torch.arange(pooled.shape[1], device=pooled.device)
        chosen = (pooled * index).amax(-1, keepdim=True).expand(-1, values.shape[-1])
    return nn.functional.one_hot(chosen, pooled.shape[1]).transpose(1, 2) * where.float()


def running_values(reading: str, values: torch.Tensor, response: torch.Tensor, alone: bool) -> torch.Tensor:
    """A feature as it would be if the text ended after each token, (B, T, K).

    Args:
        reading: One of ``configuration_sparserm.READINGS``.
        values: (B, T, K) what is read of each token alone.
        response: (B, T) bool: the tokens that the reward runs over.
        alone: Whether one token is read of each text, its last.
    """
    where = response.unsqueeze(-1)
    if alone or reading.startswith("last"):
        return values
    if reading.startswith("max"):
        return values.masked_fill(~where, 0.0).cummax(1).values  # activations are never below zero
    return (values * where).cumsum(1) / where.cumsum(1).clamp(min=1)


def read_tokens(
    model: PreTrainedModel, hidden: torch.Tensor, where: torch.Tensor, activations: bool
) -> dict[str, torch.Tensor]:
    """What is read of single tokens, (B, T, K) each: the `projection` and, where it is asked for, the `activation`.

    Args:
        model: The reward model.
        hidden: (B, T, d_model) residual streams.
        where: (B, T) bool: the tokens that are wanted.
        activations: Whether the SAE is to encode them.
    """
    z = tokens = torch.where(where.unsqueeze(-1), hidden, 0.0).float()
    if model.config.representation_norm == "rms":
        z = tokens / root_mean_square(tokens).unsqueeze(-1)
    read = {"projection": z @ model.directions.to(z).T}
    if activations:
        sae, latents = model.sae_for_latents(), model.config.latents
        read["activation"] = torch.zeros_like(read["projection"])
        for activation, row, wanted in zip(read["activation"], tokens, where, strict=True):  # (T, d_sae) is large
            encoded = sae.encode(row[wanted])
            activation[wanted] = (encoded[:, latents] if model.encodes_all else encoded).to(z)
    return read


@torch.no_grad()
def explain_rewards(model: PreTrainedModel, texts: RunTexts, weight: torch.Tensor | None = None) -> Explanation:
    """Say why texts get their rewards.

    Args:
        model: The reward model.
        texts: B texts.
        weight: (B, F) what a unit of each feature is taken to add; by default the weights of a linear head.

    Raises:
        ValueError: No weight, where the head is an MLP.
    """
    config = model.config
    if weight is None:
        if config.head_type != "linear":
            raise ValueError(
                "The reward of an MLP head is not a sum over its features: sparserm_hf.explain_text attributes it by "
                "integrated gradients."
            )
        weight = model.score.weight.detach().expand(len(texts.hidden), -1)
    hidden, pooled, response = texts
    with torch.autocast(hidden.device.type, enabled=False):
        of_tokens = read_tokens(model, hidden, response, config.reads_activations)
        average, factors = (x.to(of_tokens["projection"]) for x in (model.feature_mean, model.steering_factors()))
        weight = weight.to(average)
        parts, running = [], []
        for reading, mean in zip(config.readings, average.split(len(config.latents)), strict=True):
            values = of_tokens[reading.rpartition("_")[2]]  # (B, T, K)
            parts.append(token_shares(reading, values, pooled) * (values - mean))
            running.append(running_values(reading, values, response, config.pooling == "last") - mean)
        so_far = average + factors * torch.where(response.unsqueeze(-1), torch.cat(running, -1), 0.0)  # (B, T, F)
        token_contributions = weight.unsqueeze(1) * factors * torch.cat(parts, -1)
        features = model.features_of(hidden, pooled)
        base = model.reward(average[None])[0, 0]
        return Explanation(
            reward=model.reward(features)[:, 0],
            bias=base - weight @ average,
            weight=weight,
            features=features,
            base=base,
            contributions=torch.where(
                pooled.any(-1, keepdim=True), token_contributions.sum(1), weight * (features - average)
            ),
            token_contributions=token_contributions,
            running_reward=model.reward(so_far.flatten(0, 1)).view(response.shape),
            response=response,
        )


@torch.no_grad()
def remove_directions(model: PreTrainedModel, latents: list[int], texts: RunTexts) -> torch.Tensor:
    """Rewards (B, len(latents)) with the decoder direction of one latent after the other taken out.

    It is taken out of the residual stream of every token, h - (h . d) d for the unit vector d, before anything is read
    of it. Selected directions that overlap lose a part of theirs too, so that the reward need not change by what the
    latent itself contributes.

    Args:
        model: The reward model.
        latents: Ids of selected latents.
        texts: B texts.
    """
    hidden, rewards = texts.hidden.float(), []
    with torch.autocast(hidden.device.type, enabled=False):
        for latent in latents:
            direction = model.directions[model.config.latents.index(latent)].to(hidden)
            direction = nn.functional.normalize(direction, dim=0)
            without = hidden - (hidden @ direction).unsqueeze(-1) * direction
            rewards.append(model.reward(model.features_of(without, texts.pooled))[:, 0])
    return torch.stack(rewards, 1)
