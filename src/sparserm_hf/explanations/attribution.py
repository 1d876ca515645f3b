"""Attribute a reward to latents and tokens: an exact sum for a linear head, integrated gradients for an MLP head."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..conversations import GivenText, TokenizedText, token_text
from ..evaluation import INTERVENTIONS, measure_removals
from ..modeling.explanation_sparserm import RunTexts, explain_rewards, run_texts
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import as_numpy, without_extra
from ..scoring import Scores, encoder_of, further_scores
from .text_explanation import LatentEffect, ObjectiveEffect, PromptLatent, TextExplanation, TokenEffect

IG_STEPS = 256  # steps of integrated gradients
REASONS = 3  # number of latents of the prompt that are shown for the share of an objective


def explain(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    text: GivenText,
    max_length: int | None = None,
) -> TextExplanation:
    """Explain the reward of a text.

    With a linear head the sum over latents is exact. With an MLP head, captum attributes each feature by integrated
    gradients (Sundararajan et al., 2017, arXiv 1703.01365) from the average training response.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        text: A string, or messages that end with an assistant's message.
        max_length: Length limit in tokens: a longer text loses its start; by default the limit of training.

    Raises:
        SparseRMError: The text is empty, or captum is missing.

    Example:
        ```python
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        import sparserm_hf

        model = AutoModelForSequenceClassification.from_pretrained("my-reward-model")
        tokenizer = AutoTokenizer.from_pretrained("my-reward-model")
        messages = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}]
        print(sparserm_hf.explain(model, tokenizer, messages))  # in a notebook: coloured tokens and bars
        ```
    """
    return explain_tokens(model, tokenizer, encoder_of(model, tokenizer, max_length)(text))


def explain_tokens(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, text: TokenizedText
) -> TextExplanation:
    """Explain the reward of a tokenised text; see `explain`."""
    ids = list(text.ids)
    input_ids = torch.tensor([ids], device=model.directions.device)
    texts = run_texts(model, input_ids, torch.ones_like(input_ids), [text.place])
    weight = None if model.config.head_type == "linear" else _average_gradient(model, texts)
    found = explain_rewards(model, texts, weight)
    config, contributions = model.config, found.contributions[0]
    largest = contributions.abs().argsort(descending=True).tolist()
    removed = measure_removals(model, texts, largest[:INTERVENTIONS])
    by_latent, objectives = _by_objective(model, found.features[0], texts.prompt)
    response = found.response[0].nonzero()[:, 0]
    parts = found.token_contributions[0, response]  # (tokens, K)
    latents = [
        LatentEffect(
            latent=config.latents[i].id,
            side=config.latents[i].side,
            name=config.latents[i].title,
            name_f1=config.latents[i].title_f1,
            purity=config.latents[i].purity,
            value=float(found.features[0, i]),
            average=float(model.feature_mean[i]),
            contribution=float(contributions[i]),
            own=float(contributions[i]),
            tokens=parts[:, i].tolist(),
            removed=removed.get(i),
            by_objective=by_latent[i],
        )
        for i in largest
    ]
    tokens = [
        TokenEffect(token_text(tokenizer, ids, t), float(part.sum()), float(found.running_reward[0, t]))
        for t, part in zip(response.tolist(), parts, strict=True)
    ]
    reward, base = float(found.reward[0]), float(found.base)
    spread = model.reward_deviation(found.features)
    deviation = None if spread is None else float(spread[0])
    penalty = config.pessimism * (deviation or 0.0)
    unexplained = reward - base - float(contributions.sum()) + penalty
    return TextExplanation(reward, base, latents, tokens, unexplained, objectives, deviation, penalty)


@torch.no_grad()
def _by_objective(
    model: SparseRMForSequenceClassification, features: torch.Tensor, prompt: torch.Tensor | None
) -> tuple[list[dict[str, float]], list[ObjectiveEffect]]:
    """Split the reward of a text, and the contribution of each latent, by objective.

    Args:
        model: The reward model.
        features: (K,) features of the text.
        prompt: (1, d_model) average token of the prompt; None without a gate.
    """
    config = model.config
    if model.objectives is None:
        return [{} for _ in config.latents], []
    factors, shares = model.objective_factors(), model.shares_of(prompt)
    if shares is not None:
        factors = factors * shares[0]
    added = factors[:, None] * model.objectives.weight * (features - model.feature_mean)  # (n, K)
    rewards = model.objective_rewards(features[None])[0].tolist()
    names, means = config.objective_names, [of["reward_mean"] for of in config.objectives]
    given = [None] * len(names) if shares is None else shares[0].tolist()
    objectives = [
        ObjectiveEffect(name, reward, factor * (reward - mean), share, reasons)
        for name, reward, factor, mean, share, reasons in zip(
            names, rewards, factors.tolist(), means, given, _reasons(model, prompt), strict=True
        )
    ]
    return [dict(zip(names, column, strict=True)) for column in added.T.tolist()], objectives


def _reasons(model: SparseRMForSequenceClassification, prompt: torch.Tensor | None) -> list[list[PromptLatent]]:
    """List the latents of a prompt (1, d_model) that moved the share of each objective most."""
    config, gate = model.config, model.score.gate
    if prompt is None or not prompt.any():
        return [[] for _ in config.objectives]
    terms = gate.terms(model.prompt_features(prompt))[0]  # (objectives, K)
    largest = terms.abs().argsort(1, descending=True)[:, :REASONS]
    return [
        [PromptLatent(config.latents[i].id, config.latents[i].title, float(of_objective[i])) for i in row]
        for of_objective, row in zip(terms, largest.tolist(), strict=True)
    ]


def _average_gradient(model: SparseRMForSequenceClassification, texts: RunTexts) -> torch.Tensor:
    """Average the (1, K) gradient of the reward on the line from the average response's features to this text's."""
    try:
        from captum.attr import IntegratedGradients  # slow to import, and an extra
    except ModuleNotFoundError as error:
        raise without_extra("The explanation of an MLP head", error, "explain") from None
    with torch.no_grad():
        features = model.features_of(texts.hidden, texts.pooled)
    integrated = IntegratedGradients(model.reward, multiply_by_inputs=False)
    return integrated.attribute(features, model.feature_mean[None], target=0, n_steps=IG_STEPS).to(features)


def group_contributions(model: SparseRMForSequenceClassification, scores: Scores) -> dict[str, np.ndarray]:
    """Sum the contributions of the latents that were selected for each side, for a linear head.

    The two groups add up to the reward, without pessimism, minus the reward of the average training response. The
    result also holds a combined reward model's rewards by objective, and an ensemble's standard deviations.

    Args:
        model: The reward model.
        scores: Scores of N texts.

    Returns:
        (N,) values by name: `chosen` and `rejected`, objectives, `deviation`. Empty for an MLP head, whose reward is
        not a sum over features.
    """
    config = model.config
    if config.head_type != "linear":
        return {}
    shares = torch.from_numpy(scores.shares).float().to(model.directions.device) if config.gate else None
    weight = as_numpy(model.effective_weights(shares).detach())
    parts = weight * (scores.features - as_numpy(model.feature_mean))
    sides = np.array([latent.side for latent in config.latents])
    groups = {side: parts[:, sides == side].sum(1) for side in ("chosen", "rejected")}
    further = further_scores(model, scores.features)
    groups |= {name: np.array([of["by_objective"][name] for of in further]) for name in config.objective_names}
    return groups | ({"deviation": np.array([of["deviation"] for of in further])} if config.ensemble else {})
