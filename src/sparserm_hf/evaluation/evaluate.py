"""Evaluate a reward model on preference pairs, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..calibration import calibration_error
from ..modeling.backbone_sparserm import PooledTexts
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..preferences.pairs import TokenizedPreferences, tokenize_preferences
from ..processes import process_state
from ..representations import Pooling, collect_representations, default_cache_dir
from ..scoring import load_reward_model
from ..shards import Representations, Shard
from .controls import CONTROLS_FILE, Control, load_controls
from .metrics import PairMetrics, pair_metrics


@dataclass(frozen=True)
class Evaluation:
    """The reward model and its controls on the same pairs.

    Attributes:
        margins: (N,) reward differences, chosen minus rejected, by row name; the reward model is `SparseRM`.
        temperature: Of the reward model: sigmoid(margin / temperature) is the probability that chosen is preferred.
    """

    margins: dict[str, np.ndarray]
    temperature: float = 1.0

    @property
    def metrics(self) -> dict[str, PairMetrics]:
        """Accuracy, interval and mean margin by row name."""
        return {name: pair_metrics(margins) for name, margins in self.margins.items()}

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the reward model's probabilities."""
        return calibration_error(self.margins["SparseRM"], self.temperature)

    def flat(self) -> dict[str, float]:
        """The metrics as a flat dictionary, as trackers and model cards want them."""
        flat: dict[str, float] = {
            "eval_pairs": len(self.margins["SparseRM"]),
            "eval_calibration_error": self.calibration_error,
            "eval_calibration_error_uncalibrated": calibration_error(self.margins["SparseRM"], 1.0),
        }
        for name, metrics in self.metrics.items():
            prefix = "eval" if name == "SparseRM" else f"eval_{name.replace(' ', '_')}"
            flat |= {
                f"{prefix}_accuracy": metrics.accuracy,
                f"{prefix}_accuracy_low": metrics.low,
                f"{prefix}_accuracy_high": metrics.high,
                f"{prefix}_margin": metrics.margin,
            }
        return flat


@torch.inference_mode()
def shard_features(model: SparseRMForSequenceClassification, shard: Shard, latents: Sequence[int]) -> torch.Tensor:
    """What the head reads of a shard's texts, (n, F); `latents` as in `reward_represented`."""
    mean, last = torch.from_numpy(shard.mean), torch.from_numpy(shard.last)
    activations = [
        torch.from_numpy(found[:, latents].toarray()) for found in (shard.mean_activation, shard.max_activation)
    ]
    texts = PooledTexts(mean, last, *activations, (mean != 0).any(-1, keepdim=True))
    return model.combine_features(PooledTexts(*(tensor.to(model.directions.device) for tensor in texts)))


def reward_represented(
    model: SparseRMForSequenceClassification,
    controls: Sequence[Control],
    representations: Representations,
    lengths: np.ndarray,
    latents: Sequence[int],
) -> dict[str, np.ndarray]:
    """(N,) rewards of represented texts by row name: from the model's own head, `SparseRM`, and from its controls.

    Args:
        model: The reward model.
        controls: Its controls; those that read activations are left out where the representations hold none.
        representations: Of N texts.
        lengths: (N,) tokens of each.
        latents: Columns of the selected latents in the representations' activations; none where it holds none.
    """

    @torch.inference_mode()
    def of_shard(shard: Shard) -> np.ndarray:
        return model.reward(shard_features(model, shard, latents))[:, 0].cpu().double().numpy()

    rewards = {"SparseRM": representations.read(of_shard)}
    for control in controls:
        if not control.readings or len(latents):
            rewards[control.name] = control.rewards(representations, lengths, latents)
    return rewards


def evaluate_representations(
    model: SparseRMForSequenceClassification,
    controls: Sequence[Control],
    representations: Representations,
    pairs: TokenizedPreferences,
    latents: Sequence[int],
) -> Evaluation:
    """Evaluate on pairs whose texts are represented; see `reward_represented`."""
    rewards = reward_represented(model, controls, representations, pairs.lengths, latents)
    margins = {name: r[pairs.chosen] - r[pairs.rejected] for name, r in rewards.items()}
    return Evaluation(margins, model.config.reward_temperature)


@dataclass(frozen=True)
class SavedRewardModel:
    """A checkpoint as it is evaluated: with its tokenizer, and the controls that were saved beside it."""

    model: SparseRMForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    controls: list[Control]

    @classmethod
    def load(cls, name: str, dtype: str = "auto", revision: str | None = None) -> SavedRewardModel:
        """Load a checkpoint.

        Args:
            name: Folder or Hub id of the reward model.
            dtype: Type to run the base model in; `auto` is the checkpoint's own.
            revision: Of the reward model on the Hub.

        Raises:
            SparseRMError: It cannot be loaded.
        """
        model, tokenizer = load_reward_model(name, process_state().device, dtype, revision)
        file = cached_file(name, CONTROLS_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
        return cls(model, tokenizer, load_controls(Path(file)) if file else [])

    def tokenize(self, rows: Any, max_length: int | None = None) -> TokenizedPreferences:
        """Preference pairs as `tokenize_preferences` makes them, by default as long as in training."""
        return tokenize_preferences(rows, self.tokenizer, max_length or self.tokenizer.model_max_length)

    def represent(self, texts: list[list[int]], cache_dir: Path | None) -> Representations:
        """Represent texts as `collect_representations` does, in the usual cache where none is named."""
        config = self.model.config
        how = Pooling(config.pooling, config.representation_norm, config.response_marker_ids)
        return collect_representations(self.model.model, self.model.sae, texts, how, cache_dir or default_cache_dir())

    @property
    def columns(self) -> Sequence[int]:
        """Columns of the latents in representations: a slim SAE, if any, holds the selected ones in their order."""
        if self.model.sae is None:
            return []
        latents = self.model.config.latents
        return range(len(latents)) if self.model.config.slim else latents


def evaluate_checkpoint(
    name: str,
    rows: Any,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Evaluation:
    """Evaluate a saved reward model and the controls that were saved beside it.

    Args:
        name: See `SavedRewardModel.load`.
        rows: Preference pairs in any of TRL's formats.
        max_length: Most tokens of a text; by default as in training.
        dtype: See `SavedRewardModel.load`.
        revision: See `SavedRewardModel.load`.
        cache_dir: Where representations are kept.

    Raises:
        SparseRMError: The model cannot be loaded, or the pairs are not usable.
    """
    saved = SavedRewardModel.load(name, dtype, revision)
    pairs = saved.tokenize(rows, max_length)
    representations = saved.represent(pairs.texts, cache_dir)
    return evaluate_representations(saved.model, saved.controls, representations, pairs, saved.columns)
