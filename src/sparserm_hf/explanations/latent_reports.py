"""What the selected latents are: figures of each over preference pairs, and the passages that they fire on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..conversations import TokenizedPreferences
from ..evaluation import SavedRewardModel, correlation, shard_features
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import SparseRMError, as_numpy
from ..sae import Name
from .describe import Describer
from .passages import Passage, Passages

DESCRIBED = 10  # passages of either kind that a description is made of, and as many that it is tested on


@dataclass(frozen=True)
class LatentReport:
    """A selected latent, and what it is like over N pairs.

    Attributes:
        latent: Its id in the SAE.
        side: The side that it was selected for.
        name: Its name, see `SparseRMConfig.latent_name`.
        name_f1: How well the name predicts where it fires (F1 on held-out responses); None if it was not tested.
        promotes: Words that its direction promotes.
        suppresses: Words that it suppresses.
        link: Its page on Neuronpedia, where the SAE is there.
        purity: Cosine between its direction and the SAE's own decoder direction.
        stability: Share of the cross-validation folds that select it too; None where that is not known.
        separation: Share of chosen minus share of rejected training responses that it fires on.
        weight: Of the head; None for an MLP.
        importance: Standard deviation, over the texts, of what it adds to the reward; None for an MLP, or without
            pairs.
        firing_chosen: Share of the N chosen responses that it fires on; None where the checkpoint encodes nothing.
        firing_rejected: The same of the rejected ones.
        length_correlation: Of its feature with the number of tokens of the response; None without pairs.
        strongest: Passages where it is strongest, one a text.
        weakest: Passages of the texts whose feature is lowest.
    """

    latent: int
    side: str
    name: str
    name_f1: float | None
    promotes: list[str]
    suppresses: list[str]
    link: str | None
    purity: float
    stability: float | None
    separation: float
    weight: float | None
    importance: float | None = None
    firing_chosen: float | None = None
    firing_rejected: float | None = None
    length_correlation: float | None = None
    strongest: list[Passage] = field(default_factory=list)
    weakest: list[Passage] = field(default_factory=list)


def known_latents(saved: SavedRewardModel, top: int | None = None) -> list[LatentReport]:
    """Report on the latents by what the checkpoint alone says, the largest separations first.

    Args:
        saved: The reward model.
        top: How many latents; by default all.
    """
    config = saved.model.config
    order = np.argsort(-np.abs(config.latent_separations), kind="stable")[:top]
    weights = _weights(saved)
    return [LatentReport(**_known(config, weights, i)) for i in order.tolist()]


def _weights(saved: SavedRewardModel) -> np.ndarray | None:
    linear = saved.model.config.head_type == "linear"
    return as_numpy(saved.model.score.weight[0]) if linear else None


def _known(config: SparseRMConfig, weights: np.ndarray | None, i: int) -> dict[str, Any]:
    return {
        "latent": config.latents[i],
        "side": config.latent_sides[i],
        "name": config.latent_name(i),
        "name_f1": config.latent_name_f1(i),
        "promotes": config.latent_promotes[i],
        "suppresses": config.latent_suppresses[i],
        "link": config.latent_link(config.latents[i]),
        "purity": config.latent_purities[i],
        "stability": config.latent_stabilities[i],
        "separation": config.latent_separations[i],
        "weight": None if weights is None else float(weights[i]),
    }


def report_latents(
    saved: SavedRewardModel,
    pairs: TokenizedPreferences,
    top: int | None = None,
    examples: int = 3,
    cache_dir: Path | None = None,
    describer: Describer | None = None,
) -> list[LatentReport]:
    """Report on the latents that matter most, those first that move the reward most.

    Args:
        saved: The reward model.
        pairs: Preference pairs, such as it was trained on.
        top: How many latents; by default all.
        examples: Passages of each, strongest and weakest.
        cache_dir: Where representations are kept.
        describer: Asked for the names; by default they are those of the configuration.

    Raises:
        SparseRMError: The describer does not answer, or the checkpoint is slim and has no passages to show it.
    """
    model, config = saved.model, saved.model.config
    texts = saved.represent(pairs.texts, cache_dir)
    features = texts.read(lambda shard: as_numpy(shard_features(model, shard)))  # (N, K)
    fires = passages = None
    if saved.columns:
        fires = texts.read(lambda shard: (shard.max_activation[:, saved.columns] > 0).toarray())
        passages = Passages(saved.tokenizer, pairs.texts, texts.token_activations(saved.columns), config.pooling)
    weights = _weights(saved)
    importance = None if weights is None else features.std(0) * np.abs(weights)
    key = np.abs(config.latent_separations) if importance is None else importance
    lengths = np.array([len(text.response) for text in pairs.texts])

    def rate(side: Sequence[int], i: int) -> float | None:
        return None if fires is None else float(fires[side, i].mean())

    def weakest(i: int) -> list[Passage]:
        order = np.argsort(features[:, i], kind="stable")[:examples].tolist()
        found = [passages.of_text(i, number) for number in order] if passages else []
        return [passage for passage in found if passage]

    shown = np.argsort(-key, kind="stable")[:top].tolist()
    described: dict[int, dict[str, Any]] = {}
    if describer:
        if passages is None:
            raise SparseRMError("A slim checkpoint holds no SAE, and so no passages to describe: use a whole one.")
        for i in tqdm(shown, desc="Describing", unit="latent", delay=2):
            name = _described(describer, passages, i)
            described[i] = {"name": name.name, "name_f1": name.f1}
    return [
        LatentReport(
            **(_known(config, weights, i) | described.get(i, {})),
            importance=None if importance is None else float(importance[i]),
            firing_chosen=rate(pairs.chosen, i),
            firing_rejected=rate(pairs.rejected, i),
            length_correlation=correlation(lengths, features[:, i]),
            strongest=passages.strongest(i, examples) if passages else [],
            weakest=weakest(i),
        )
        for i in shown
    ]


def _described(describer: Describer, passages: Passages, i: int) -> Name:
    """Ask for a description of latent i, of K, by half of its passages, and test it on the other half."""
    firing, silent = passages.strongest(i, 2 * DESCRIBED), passages.silent(i, 2 * DESCRIBED)
    return describer.describe(firing[::2], silent[::2], [*firing[1::2], *silent[1::2]])
