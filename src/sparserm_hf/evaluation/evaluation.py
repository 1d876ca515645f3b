"""Evaluate a reward model on preference pairs, beside its controls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from ..conversations import (
    TokenizedPreferences,
    TokenizedText,
    measure_styles,
    style_differences,
    tokenize_preferences,
)
from ..modeling.fields_sparserm import FINITE
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Pooling, Representations, Shard, collect_representations
from ..runtime import as_numpy, default_cache_dir, process_state, reading, shown
from ..scoring import encoder_of, load_reward_model
from .calibration_error import calibration_error
from .controls import Control, check_arrays, check_controls, find_controls
from .hacking import Attack
from .metrics import PairMetrics, correlation, pair_metrics

EVALUATION_FILE = "evaluation.safetensors"


@dataclass(frozen=True)
class Evaluation:
    """The reward model and its controls on the same pairs.

    Attributes:
        margins: (N,) reward differences, chosen minus rejected, by row name; the reward model is `SparseRM`.
        styles: (N, 2) what `measure_styles` says of the chosen and rejected responses, by style.
        temperature: Of the reward model: sigmoid(margin / temperature) is the probability that chosen is preferred.
        attacks: How often responses made of the chat template's own tokens beat the chosen one; measured in training.
    """

    margins: dict[str, np.ndarray]
    styles: dict[str, np.ndarray]
    temperature: float
    attacks: tuple[Attack, ...] = ()

    @property
    def metrics(self) -> dict[str, PairMetrics]:
        """Accuracy, interval and mean margin by row name."""
        return {name: pair_metrics(margins) for name, margins in self.margins.items()}

    @property
    def by_length(self) -> dict[str, np.ndarray]:
        """Numbers of the pairs whose chosen response is the shorter, as long, or the longer one."""
        sign = np.sign(np.subtract(*self.styles["tokens"].T))
        kinds = {"shorter chosen": -1, "equally long": 0, "longer chosen": 1}
        return {kind: np.flatnonzero(sign == of_kind) for kind, of_kind in kinds.items()}

    def metrics_by_length(self, name: str) -> dict[str, PairMetrics]:
        """Accuracy of a row where the chosen response is shorter, as long, or longer; empty kinds are left out."""
        return {kind: pair_metrics(self.margins[name][of]) for kind, of in self.by_length.items() if len(of)}

    def style_correlations(self, name: str) -> dict[str, float]:
        """Of a row's reward differences with differences of style, by style; 0 where a style is not to be seen."""
        differences = style_differences(self.styles)  # (N, styles)
        return {style: correlation(self.margins[name], differences[:, i]) for i, style in enumerate(self.styles)}

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
        for kind, metrics in self.metrics_by_length("SparseRM").items():
            flat[f"eval_{kind.replace(' ', '_')}_accuracy"] = metrics.accuracy
        return flat | {
            f"eval_{style.replace(' ', '_')}_correlation": value
            for style, value in self.style_correlations("SparseRM").items()
        }

    def save(self, path: Path) -> None:
        """Write it to a file that lies beside the checkpoint; no text is in it."""
        parts = {"margins": self.margins, "styles": self.styles}
        tensors = {f"{part}/{name}": np.ascontiguousarray(x) for part, of in parts.items() for name, x in of.items()}
        described: dict[str, Any] = {part: list(of) for part, of in parts.items()}
        described |= {"temperature": self.temperature, "attacks": [asdict(attack) for attack in self.attacks]}
        save_file(tensors, path, metadata={"evaluation": json.dumps(described)})  # two keys would go in any order

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """What `save` wrote.

        Raises:
            SparseRMError: The file is broken.
        """
        with reading(f"The file {path.name} beside the reward model"), safe_open(path, "numpy") as file:
            described = json.loads(file.metadata()["evaluation"])
            temperature = described.pop("temperature")
            attacks = tuple(Attack.of(attack) for attack in described.pop("attacks", []))  # version 0.1 has none
            parts = {part: {name: file.get_tensor(f"{part}/{name}") for name in of} for part, of in described.items()}
            evaluation = cls(**parts, temperature=float(temperature), attacks=attacks)
            pairs = len(evaluation.margins["SparseRM"])
            check_arrays(evaluation.margins, dict.fromkeys(evaluation.margins, (pairs,)))
            check_arrays(evaluation.styles, dict.fromkeys(("tokens", *evaluation.styles), (pairs, 2)))
            if not pairs or not FINITE.holds(temperature) or temperature <= 0:
                raise ValueError(f"it has {pairs} pairs and the temperature {shown(temperature)}")
            return evaluation


@torch.inference_mode()
def shard_features(model: SparseRMForSequenceClassification, shard: Shard) -> torch.Tensor:
    """What the head reads of a shard's texts, (n, K)."""
    mean = torch.from_numpy(shard.mean).to(model.directions.device)
    return model.project(mean, (mean != 0).any(-1, keepdim=True))


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
        return as_numpy(model.reward(shard_features(model, shard))[:, 0])

    rewards = {"SparseRM": representations.read(of_shard)}
    for control in controls:
        if control.reads != "activations" or len(latents):
            rewards[control.name] = control.rewards(representations, lengths, latents)
    return rewards


def evaluate_representations(
    model: SparseRMForSequenceClassification,
    controls: Sequence[Control],
    representations: Representations,
    pairs: TokenizedPreferences,
    styles: dict[str, np.ndarray],
    latents: Sequence[int],
) -> Evaluation:
    """Evaluate on pairs whose texts are represented and whose styles are measured; see `reward_represented`."""
    rewards = reward_represented(model, controls, representations, pairs.lengths, latents)
    margins = {name: r[pairs.chosen] - r[pairs.rejected] for name, r in rewards.items()}
    return Evaluation(margins, styles, model.config.reward_temperature)


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
            dtype: Type to run the base model in; `auto` is the one that training ran in.
            revision: Of the reward model on the Hub.

        Raises:
            SparseRMError: It cannot be loaded.
        """
        model, tokenizer = load_reward_model(name, process_state().device, dtype, revision)
        controls = find_controls(name, revision)
        check_controls(controls, model.config.hidden_size, len(model.config.latents))
        return cls(model, tokenizer, controls)

    def tokenize(self, rows: Any, max_length: int | None = None) -> TokenizedPreferences:
        """Preference pairs as `tokenize_preferences` makes them, by default as long as in training."""
        return tokenize_preferences(rows, encoder_of(self.model, self.tokenizer, max_length))

    def represent(self, texts: list[TokenizedText], cache_dir: Path | None) -> Representations:
        """Represent texts as `collect_representations` does, in the usual cache where none is named."""
        config = self.model.config
        how = Pooling(config.pooling, config.representation_norm)
        return collect_representations(self.model.model, self.model.sae, texts, how, cache_dir or default_cache_dir())

    def evaluate(self, pairs: TokenizedPreferences, cache_dir: Path | None) -> Evaluation:
        """The reward model and its controls on preference pairs."""
        representations = self.represent(pairs.texts, cache_dir)
        styles = measure_styles(pairs, self.tokenizer)
        return evaluate_representations(self.model, self.controls, representations, pairs, styles, self.columns)

    @property
    def columns(self) -> Sequence[int]:
        """Columns of the latents in representations; none where the checkpoint is slim and encodes nothing."""
        return self.model.config.latents if self.model.sae else []


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
    return saved.evaluate(saved.tokenize(rows, max_length), cache_dir)
