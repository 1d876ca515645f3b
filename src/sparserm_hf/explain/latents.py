"""What the selected latents are: figures of each over preference pairs, and the texts that they fire on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..conversations.encoding import TokenizedText
from ..conversations.pairs import TokenizedPreferences
from ..evaluation.evaluate import SavedRewardModel, shard_features
from ..evaluation.metrics import correlation
from ..modeling.backbone_sparserm import residual_stream
from ..modeling.explanation_sparserm import read_tokens
from ..modeling.response_sparserm import pooled_tokens
from ..representations import batch_tokens, pad_texts, plan_batches
from .attribution import token_text

WINDOW = 12  # tokens on either side of the one that an example is about


@dataclass(frozen=True)
class Example:
    """A passage around the token where a latent is strongest.

    Attributes:
        strength: Of the latent there: its activation, or its projection where the checkpoint encodes none.
        tokens: Of the passage.
        strengths: Of the latent at each.
    """

    strength: float
    tokens: list[str]
    strengths: list[float]


@dataclass(frozen=True)
class LatentReport:
    """A selected latent over N pairs.

    Attributes:
        latent: Its id in the SAE.
        side: The side that it was selected for.
        label: What its user calls it.
        promotes: Words that its direction promotes.
        suppresses: Words that it suppresses.
        link: Its page on Neuronpedia, where the SAE is there.
        stability: Share of the cross-validation folds that select it too; None where that is not known.
        separation: Share of chosen minus share of rejected training responses that it fires on.
        weights: Of the head, by reading; empty for an MLP.
        importance: Standard deviation, over the texts, of what it adds to the reward; 0 for an MLP.
        firing_chosen: Share of the N chosen responses that it fires on; None where the checkpoint encodes nothing.
        firing_rejected: The same of the rejected ones.
        length_correlation: Of what the head reads of it first with the number of tokens of the response.
        strongest: Passages where it is strongest, one a text; only where it fires, if that is known.
        weakest: Passages of the texts where what the head reads of it first is lowest.
    """

    latent: int
    side: str
    label: str
    promotes: list[str]
    suppresses: list[str]
    link: str | None
    stability: float | None
    separation: float
    weights: dict[str, float]
    importance: float
    firing_chosen: float | None
    firing_rejected: float | None
    length_correlation: float
    strongest: list[Example]
    weakest: list[Example]


def report_latents(
    saved: SavedRewardModel,
    pairs: TokenizedPreferences,
    top: int | None = None,
    examples: int = 3,
    cache_dir: Path | None = None,
) -> list[LatentReport]:
    """Report on the latents that matter most, those first that move the reward most.

    Args:
        saved: The reward model.
        pairs: Preference pairs, such as it was trained on.
        top: How many latents; by default all.
        examples: Passages of each, strongest and weakest.
        cache_dir: Where representations are kept.
    """
    model, config = saved.model, saved.model.config
    representations, columns, k = saved.represent(pairs.texts, cache_dir), saved.columns, len(config.latents)
    features = representations.read(lambda shard: shard_features(model, shard, columns).cpu().numpy())  # (N, F)
    fires = None
    first = features[:, :k]
    if len(columns):
        fires = representations.read(lambda shard: shard.max_activation[:, columns].toarray())
    strength = first if fires is None else fires
    weight = np.zeros(features.shape[1])
    if config.head_type == "linear":
        weight = model.score.weight[0].detach().double().cpu().numpy()
    importance = (features * weight).reshape(len(features), -1, k).sum(1).std(0)
    key = importance if importance.any() else np.abs(config.latent_separations)
    order = np.argsort(-key, kind="stable")[:top]
    lengths = np.array([len(text.response) for text in pairs.texts])
    tops, bottoms = (
        {i: np.argsort(by[:, i], kind="stable")[:examples].tolist() for i in order} for by in (-strength, first)
    )
    if fires is not None:
        tops = {i: [text for text in texts if fires[text, i] > 0] for i, texts in tops.items()}
    wanted = {text: [i for i in order if text in tops[i] + bottoms[i]] for text in _numbers(tops, bottoms)}
    passages = _passages(saved, pairs.texts, wanted)

    def rate(side: Sequence[int], i: int) -> float | None:
        return None if fires is None else float((fires[side, i] > 0).mean())

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
            weights=dict(zip(config.readings, weight[i::k].tolist(), strict=True)) if weight.any() else {},
            importance=float(importance[i]),
            firing_chosen=rate(pairs.chosen, i),
            firing_rejected=rate(pairs.rejected, i),
            length_correlation=correlation(lengths, first[:, i]),
            strongest=[passages[text, i] for text in tops[i]],
            weakest=[passages[text, i] for text in bottoms[i]],
        )
        for i in order.tolist()
    ]


def _numbers(*sides: dict[int, list[int]]) -> list[int]:
    return sorted({text for side in sides for texts in side.values() for text in texts})


@torch.inference_mode()
def _passages(
    saved: SavedRewardModel, texts: list[TokenizedText], wanted: dict[int, list[int]]
) -> dict[tuple[int, int], Example]:
    """Examples by number of text and of latent, of the given latents of each text."""
    model, config = saved.model, saved.model.config
    device, found = model.directions.device, {}
    numbers = list(wanted)
    for batch in plan_batches([len(texts[n].ids) for n in numbers], batch_tokens(device)):
        ids, mask = pad_texts([texts[numbers[b]].ids for b in batch], device)
        hidden = residual_stream(model.model, ids, mask)
        pooled = pooled_tokens(mask, [texts[numbers[b]].place for b in batch], config.pooling).to(hidden.device)
        read = read_tokens(model, hidden, pooled, activations=model.sae is not None)
        strengths = read.get("activation", read["projection"])  # (B, T, K)
        for row, b in enumerate(batch):
            positions = pooled[row].nonzero()[:, 0].cpu()
            for i in wanted[numbers[b]]:
                values = strengths[row, :, i].float().cpu()
                found[numbers[b], i] = _passage(saved.tokenizer, list(texts[numbers[b]].ids), values, positions)
    return found


def _passage(
    tokenizer: PreTrainedTokenizerBase, text: list[int], values: torch.Tensor, positions: torch.Tensor
) -> Example:
    """The tokens around the strongest of those that are read."""
    if not len(positions):
        return Example(0.0, [], [])
    centre = int(positions[values[positions].argmax()])
    around = range(max(int(positions[0]), centre - WINDOW), min(int(positions[-1]), centre + WINDOW) + 1)
    return Example(
        float(values[centre]), [token_text(tokenizer, text, t) for t in around], [float(values[t]) for t in around]
    )
