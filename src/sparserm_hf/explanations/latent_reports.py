"""Report on the selected latents: figures over preference pairs, and passages that each latent fires on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..conversations import TokenizedPreferences
from ..evaluation import SavedRewardModel, correlation, shard_features, shard_shares
from ..modeling.configuration_sparserm import SparseRMConfig
from ..representations import Representations
from ..runtime import SparseRMError, as_numpy
from .describe import Describer
from .passages import Passage, Passages

DESCRIBED = 10  # number of firing and of silent passages to describe a latent by; its test takes as many again


@dataclass(frozen=True)
class LatentReport:
    """Figures and passages of one selected latent over N preference pairs.

    Attributes:
        latent: Id of the latent in the SAE.
        side: `chosen` or `rejected`: the side that the latent was selected for.
        name: Name of the latent, see `Latent.title`; empty if it has none.
        name_f1: F1 of the name as a predictor of the latent's firing on held-out responses; None if it is not tested.
        promotes: Words that the latent's direction promotes through the unembedding.
        suppresses: Words that the direction suppresses.
        link: Page of the latent on Neuronpedia; None if the SAE is not published there.
        purity: Cosine of the latent's direction with the SAE's own decoder direction.
        stability: Share of cross-validation folds in which the latent is selected for its side too; None if unknown.
        separation: Share of the chosen minus share of the rejected training responses that the latent fires on.
        weight: Weight of the linear head, without the gate of a combined model; None for an MLP head.
        importance: Standard deviation of the latent's contribution over the texts; None for an MLP head or without
            pairs.
        firing_chosen: Share of the N chosen responses that the latent fires on; None for a slim checkpoint or without
            pairs.
        firing_rejected: Share of the N rejected responses that the latent fires on.
        length_correlation: Correlation of the feature with the number of response tokens; None without pairs.
        strongest: Passages where the latent is strongest, at most one from a text.
        weakest: Passages of the texts with the lowest values of the latent's feature.
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


@dataclass(frozen=True)
class LatentReports:
    """Reports on latents over preference pairs.

    Attributes:
        latents: The reports, the most important latent first.
        pairs: Number of preference pairs.
    """

    latents: list[LatentReport]
    pairs: int


def known_latents(saved: SavedRewardModel, top: int | None = None) -> list[LatentReport]:
    """Report on latents from the checkpoint alone, the largest separations first.

    Args:
        saved: The reward model.
        top: Number of latents; by default all.
    """
    config = saved.model.config
    order = np.argsort([-abs(latent.separation) for latent in config.latents], kind="stable")[:top]
    weights = _weights(saved)
    return [LatentReport(**_known(config, weights, i)) for i in order.tolist()]


def _weights(saved: SavedRewardModel) -> np.ndarray | None:
    linear = saved.model.config.head_type == "linear"
    return as_numpy(saved.model.score.weight[0]) if linear else None


def _known(config: SparseRMConfig, weights: np.ndarray | None, i: int) -> dict[str, Any]:
    latent = config.latents[i]
    return {
        "latent": latent.id,
        "side": latent.side,
        "name": latent.title,
        "name_f1": latent.title_f1,
        "promotes": latent.promotes,
        "suppresses": latent.suppresses,
        "link": config.latent_link(latent.id),
        "purity": latent.purity,
        "stability": latent.stability,
        "separation": latent.separation,
        "weight": None if weights is None else float(weights[i]),
    }


def _importance(saved: SavedRewardModel, texts: Representations, features: np.ndarray) -> np.ndarray | None:
    model, weights = saved.model, _weights(saved)
    if weights is None:
        return None
    if not model.config.gate:
        return features.std(0) * np.abs(weights)
    of_texts = texts.read(lambda shard: as_numpy(model.effective_weights(shard_shares(model, shard)).detach()))
    return (of_texts * (features - as_numpy(model.feature_mean))).std(0)


@dataclass(frozen=True)
class MeasuredLatents:
    """Features and activations of the K selected latents over the T texts of preference pairs.

    Attributes:
        saved: The reward model.
        pairs: The preference pairs.
        features: (T, K) input features of the head.
        importance: (K,) standard deviations of the contributions over the texts; None for an MLP head.
        fires: (T, K) True if a latent fires on a text; None for a slim checkpoint, which has no SAE.
        passages: Passages of the texts; None for a slim checkpoint.
    """

    saved: SavedRewardModel
    pairs: TokenizedPreferences
    features: np.ndarray
    importance: np.ndarray | None
    fires: np.ndarray | None
    passages: Passages | None

    @classmethod
    def of(cls, saved: SavedRewardModel, pairs: TokenizedPreferences, cache_dir: Path | None) -> MeasuredLatents:
        """Measure the latents of a reward model."""
        texts = saved.represent(pairs.texts, cache_dir)
        features = texts.read(lambda shard: as_numpy(shard_features(saved.model, shard)))
        importance = _importance(saved, texts, features)
        if not saved.columns:
            return cls(saved, pairs, features, importance, None, None)
        fires = texts.read(lambda shard: (shard.max_activation[:, saved.columns] > 0).toarray())
        activations = texts.token_activations(saved.columns)
        passages = Passages(saved.tokenizer, pairs.texts, activations, saved.model.config.pooling)
        return cls(saved, pairs, features, importance, fires, passages)

    @cached_property
    def weights(self) -> np.ndarray | None:
        """(K,) weights of a linear head; None for an MLP head."""
        return _weights(self.saved)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(T,) number of response tokens of each text."""
        return np.array([len(text.response) for text in self.pairs.texts])

    def most_important(self, top: int | None) -> list[int]:
        """List the columns of the latents, the most important first; by separation for an MLP head."""
        separations = [latent.separation for latent in self.saved.model.config.latents]
        key = separations if self.importance is None else self.importance
        return np.argsort(-np.abs(key), kind="stable")[:top].tolist()

    def report(self, i: int, examples: int) -> LatentReport:
        """Report on latent i of K, with up to `examples` strongest and `examples` weakest passages."""
        rates: dict[str, Any] = {}
        if self.fires is not None:
            sides = {"firing_chosen": self.pairs.chosen, "firing_rejected": self.pairs.rejected}
            rates = {name: float(self.fires[side, i].mean()) for name, side in sides.items()}
        return LatentReport(
            **_known(self.saved.model.config, self.weights, i),
            **rates,
            importance=None if self.importance is None else float(self.importance[i]),
            length_correlation=correlation(self.lengths, self.features[:, i]),
            strongest=self.passages.strongest(i, examples) if self.passages else [],
            weakest=self._weakest(i, examples),
        )

    def _weakest(self, i: int, examples: int) -> list[Passage]:
        order = np.argsort(self.features[:, i], kind="stable")[:examples].tolist()
        found = [self.passages.of_text(i, number) for number in order] if self.passages else []
        return [passage for passage in found if passage]

    def describe(self, describer: Describer, i: int) -> dict[str, Any]:
        """Describe latent i of K from half of its passages and test the description on the other half.

        Returns:
            `name` and `name_f1` of a `LatentReport`.

        Raises:
            SparseRMError: The describer does not answer, or the checkpoint is slim.
        """
        if self.passages is None:
            raise SparseRMError(
                "A slim checkpoint has no SAE, so its latents cannot be described: give a self-contained checkpoint."
            )
        firing, silent = self.passages.strongest(i, 2 * DESCRIBED), self.passages.silent(i, 2 * DESCRIBED)
        name = describer.describe(firing[::2], silent[::2], [*firing[1::2], *silent[1::2]])
        return {"name": name.name, "name_f1": name.f1}


def measure_latents(
    saved: SavedRewardModel,
    pairs: TokenizedPreferences,
    top: int | None = None,
    examples: int = 3,
    cache_dir: Path | None = None,
    describer: Describer | None = None,
) -> list[LatentReport]:
    """Report on latents over tokenised preference pairs; see `report_latents`."""
    measured = MeasuredLatents.of(saved, pairs, cache_dir)
    shown = measured.most_important(top)
    described: dict[int, dict[str, Any]] = {}
    if describer:
        bar = tqdm(shown, desc="Describing", unit="latent", delay=2)
        described = {i: measured.describe(describer, i) for i in bar}
    return [replace(measured.report(i, examples), **described.get(i, {})) for i in shown]


def report_latents(
    model: str,
    rows: Any,
    top: int | None = None,
    examples: int = 3,
    describer: Describer | None = None,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> LatentReports:
    """Report on the latents of a saved reward model over preference pairs, the most important latent first.

    A latent is important if its contribution to the reward varies much over the texts.

    Args:
        model: Folder or Hub id of the reward model.
        rows: Preference pairs in any of TRL's formats, such as the training pairs.
        top: Number of latents; by default all.
        examples: Number of strongest and of weakest passages of each latent.
        describer: Language model that describes the latents; by default they keep the names of the checkpoint.
        max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        dtype: Data type of the base model; `auto` takes the type that training ran in.
        revision: Revision of the reward model on the Hub.
        cache_dir: Folder of cached representations; by default in `HF_HOME`.

    Raises:
        SparseRMError: The model cannot be loaded, the pairs are not usable, the describer does not answer, or it is
            given for a slim checkpoint, which has no SAE.

    Example:
        ```python
        from sparserm_hf import load_preferences, report_latents

        for report in report_latents("my-reward-model", load_preferences("my-pairs.jsonl"), top=5).latents:
            print(report.latent, report.name, report.importance)
        ```
    """
    saved = SavedRewardModel.load(model, dtype, revision)
    pairs = saved.tokenize(rows, max_length)
    return LatentReports(measure_latents(saved, pairs, top, examples, cache_dir, describer), len(pairs))
