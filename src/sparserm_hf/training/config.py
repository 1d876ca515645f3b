"""Settings of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..base_models import QUANTIZATIONS
from ..conversations import MIN_LENGTH, STYLES
from ..modeling.fields_sparserm import DIRECTIONS, HEAD_TYPES, POOLINGS, REPRESENTATION_NORMS
from ..runtime import SparseRMError, option, tracker_names
from .objective import LOSSES

# L2 penalties that the cross-validation of a linear head tries, from strong to weak. The features are standardised and
# the loss is a mean over pairs, so the same values suit any number of pairs.
L2_PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)

# Settings that an adapter cannot be combined with.
WHY_NOT = {
    "slim": "a slim checkpoint loads the base model of the Hub, which has no adapter.",
    "quantization": "an adapter cannot be merged into quantised weights.",
    "debias": "the adapter would bring the styles back.",
    "ensemble": "the adapter is trained with one head.",
}


@dataclass(kw_only=True)
class RewardHeadConfig:
    """Settings of latent selection, projection and reward head; each field's `help` describes it.

    Raises:
        SparseRMError: A setting is out of its range.

    Example:
        >>> RewardHeadConfig(k=8, loss="bradley_terry")
        RewardHeadConfig(k=8, directions='orthogonal', head_type='linear', \
loss='bradley_terry', ensemble=0, exclude_latents='', gamma=1.0, seed=42)
        >>> RewardHeadConfig(k=0)
        Traceback (most recent call last):
        sparserm_hf.runtime.errors.SparseRMError: k is 0, but must be at least 1.
    """

    k: int | str = option(
        "auto",
        "Number of latents to select on each side, 128 in the paper; auto takes the smallest number within one "
        "standard error of the best cross-validated accuracy.",
    )
    directions: Literal["orthogonal", "raw"] = option(
        "orthogonal",
        "Directions to project on: raw takes the decoder directions of the selected latents, as the paper does, and "
        "orthogonal makes them orthonormal, so that each term of a reward can be removed by itself.",
    )
    head_type: Literal["linear", "mlp"] = option(
        "linear", "Type of the reward head: linear, whose rewards are explained exactly, or mlp."
    )
    loss: Literal["margin", "bradley_terry", "bce"] = option("margin", "Loss to fit the head with.")
    ensemble: int = option(
        0,
        "Number of further heads to fit on bootstrap samples of the prompts, such as 20: each reward then has a "
        "standard deviation, which tells how uncertain the training pairs leave it.",
    )
    exclude_latents: str = option(
        "",
        "Ids of latents that must not be selected, separated by commas, such as latents of a style or a topic.",
    )
    gamma: float = option(1.0, "Reward difference that the margin loss demands of every pair.")
    seed: int = option(42, "Seed of the folds, the random directions and the MLP head.")

    def __post_init__(self) -> None:
        for name, known in (("directions", DIRECTIONS), ("head_type", HEAD_TYPES), ("loss", LOSSES)):
            self._check_choice(name, known)
        if self.k != "auto":
            try:
                self.k = int(self.k or 0)
            except ValueError:
                raise SparseRMError(f"k is {self.k!r}, but must be a number of latents, or auto.") from None
            self._check_least("k", 1)
        self._check_least("seed", 0)
        if not all(name.isdecimal() for name in self._excluded_names):
            raise SparseRMError(
                f"exclude_latents is {self.exclude_latents!r}, but must be ids of latents, separated by commas."
            )
        if self.ensemble and (self.ensemble < 2 or self.head_type != "linear"):
            raise SparseRMError(
                f"ensemble is {self.ensemble} and head_type {self.head_type}, but an ensemble has at least 2 heads, "
                "all of them linear: change one of them, or leave ensemble out."
            )
        if self.loss == "margin" and not self.gamma > 0:
            raise SparseRMError(
                f"gamma is {self.gamma}, but must be above 0: with 0, a head of zero weights already has no loss."
            )

    @property
    def _excluded_names(self) -> list[str]:
        return [name.strip() for name in self.exclude_latents.split(",") if name.strip()]

    @property
    def excluded(self) -> list[int]:
        """Ids of the latents that must not be selected."""
        return [int(name) for name in self._excluded_names]

    def _check_choice(self, name: str, known: Sequence[str]) -> None:
        if getattr(self, name) not in known:
            raise SparseRMError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(known)}.")

    def _check_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise SparseRMError(f"{name} is {getattr(self, name)}, but must be at least {least}.")


@dataclass
class SparseRMTrainingConfig(RewardHeadConfig):
    """Settings of `SparseRMTrainer` and `sparserm train`; each field's `help` describes it.

    Raises:
        SparseRMError: A setting is out of its range.

    Example:
        >>> config = SparseRMTrainingConfig("my-reward-model", k=8, debias="length,format")
        >>> config.output_dir, config.k, config.debias_names
        ('my-reward-model', 8, ['length', 'format'])
    """

    output_dir: str = field(metadata={"help": "Folder to write the reward model to."})
    layer: int | None = option(
        None, "Number of decoder layers of the base model to keep; by default, the layers before the SAE's hook."
    )
    pooling: Literal["response_mean", "mean", "last"] = option(
        "response_mean",
        "Tokens to average into one vector: the response's tokens (response_mean), all tokens up to the response's "
        "end (mean), or only the response's last token (last).",
    )
    representation_norm: Literal["rms", "none"] = option(
        "rms", "Normalisation of each token before pooling: rms divides it by its root mean square, none does nothing."
    )
    max_length: int = option(1024, "Maximum number of tokens of a text; a longer pair loses the start of its prompt.")
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto",
        "Data type to run the base model in; auto is bfloat16 on hardware where it is fast, and float32 elsewhere.",
    )
    quantization: Literal["none", "bnb-4bit", "bnb-8bit"] = option(
        "none",
        "Quantise the base model's weights with bitsandbytes on loading; an already quantised base model keeps its "
        "quantisation.",
    )
    cache_dir: str | None = option(None, "Folder to cache representations in; by default, sparserm in HF_HOME.")
    controls: bool = option(
        True,
        "Fit the controls too: dense representation, random directions, SAE activations, length.",
        off="Do not fit the controls (dense representation, random directions, SAE activations, length).",
    )
    check_sae: bool = option(
        True,
        "Before the base model runs on all texts, check that the SAE fits the base model and the layer.",
        off="Do not check that the SAE fits the base model and the layer.",
    )
    debias: str = option(
        "none",
        "Styles that reward differences must not be correlated with: length, format, or length,format.",
    )
    adapter_rank: int = option(
        0,
        "Rank of a LoRA adapter that is trained in front of the SAE together with the head, by the Bradley-Terry "
        "loss, and merged into the base model: more accurate, but minutes instead of seconds. 0 trains the head only.",
    )
    slim: bool = option(
        False, "Save the head and the selected latents only; loading then fetches the base model by its id."
    )
    report_to: str = option("none", "Trackers to send the metrics to, separated by commas: wandb, tensorboard, ...")
    push_to_hub: bool = option(False, "Push the saved model to the Hub.")
    hub_model_id: str | None = option(None, "Repository on the Hub; by default, the name of the output folder.")
    hub_private_repo: bool = option(False, "Make the repository on the Hub private.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("pooling", POOLINGS),
            ("representation_norm", REPRESENTATION_NORMS),
            ("dtype", ("auto", "bfloat16", "float32")),
            ("quantization", QUANTIZATIONS),
        ):
            self._check_choice(name, known)
        self._check_least("max_length", MIN_LENGTH)
        self._check_least("adapter_rank", 0)
        for name, why in WHY_NOT.items():
            if self.adapter_rank and getattr(self, name) not in (False, "none"):
                raise SparseRMError(f"adapter_rank and {name} exclude each other: {why} Leave one of them out.")
        tracker_names(self.report_to)
        unknown = set(self.debias_names) - set(STYLES)
        if unknown:
            raise SparseRMError(
                f"debias names {sorted(unknown)[0]!r}, but may name {', '.join(STYLES)}, separated by commas, or none."
            )

    @property
    def debias_names(self) -> list[str]:
        """Names of the styles that rewards must not follow."""
        return [name for name in map(str.strip, self.debias.split(",")) if name != "none"]
