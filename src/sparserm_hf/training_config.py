"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .conversations.styles import STYLES
from .errors import SparseRMError
from .features import FEATURES
from .head import LOSSES
from .modeling.configuration_sparserm import HEAD_TYPES, POOLINGS, REPRESENTATION_NORMS
from .trackers import tracker_names

MIN_LENGTH = 8  # tokens; a chat template alone takes as many


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class SparseRMTrainingConfig:
    """Everything that decides what model comes out. Each option is described once, in its `help`."""

    output_dir: str = field(metadata={"help": "Folder that the model is written to."})
    layer: int | None = _option(None, "Decoder layers of the base model to keep; by default where the SAE reads.")
    pooling: Literal["response_mean", "mean", "last"] = _option(
        "response_mean", "Tokens that are averaged: those of the response, all, or the last one alone."
    )
    representation_norm: Literal["rms", "none"] = _option(
        "rms", "Divide each token by its root mean square before pooling, or take it as it is."
    )
    features: Literal["projection", "activation", "both", "all"] = _option(
        "projection",
        "What is read of each selected latent: the projection of the mean token on its decoder direction, its mean "
        "activation, both, or all: these and the projection of the last token and the largest activation.",
    )
    k: int = _option(128, "Latents selected on either side: K that fire more on chosen, K on rejected responses.")
    head_type: Literal["linear", "mlp"] = _option("linear", "Head: linear, which is explained exactly, or an MLP.")
    head_hidden_size: int = _option(512, "Width of the MLP head's hidden layer.")
    loss: Literal["margin", "bradley_terry", "bce"] = _option("margin", "Loss that the head is fitted with.")
    gamma: float = _option(1.0, "Margin that every pair must keep, for the margin loss.")
    max_length: int = _option(1024, "Most tokens of a text; longer pairs lose the start of their prompt.")
    dtype: Literal["auto", "bfloat16", "float32"] = _option(
        "auto",
        "Type the base model runs in; auto: bfloat16 where the hardware is good at it, else float32.",
    )
    cache_dir: str | None = _option(None, "Where representations are kept; by default sparserm in HF_HOME.")
    controls: bool = _option(
        True, "Fit the controls too: dense representation, random directions, activations, length."
    )
    check_sae: bool = _option(
        True, "Stop before anything expensive where the SAE clearly does not fit base and layer."
    )
    debias: str = _option(
        "none", "What rewards must not follow among chosen and rejected responses: length, format, or length,format."
    )
    slim: bool = _option(False, "Save the head and the selected latents only; the base model is loaded by its id.")
    seed: int = _option(42, "Seed of all that is random.")
    report_to: str = _option("none", "Trackers that get the metrics, separated by commas: wandb, tensorboard, ...")
    push_to_hub: bool = _option(False, "Push the saved model to the Hub.")
    hub_model_id: str | None = _option(None, "Repository on the Hub; by default the name of the output folder.")
    hub_private_repo: bool = _option(False, "Make the repository private.")

    def __post_init__(self) -> None:
        for name, known in (
            ("pooling", POOLINGS),
            ("representation_norm", REPRESENTATION_NORMS),
            ("features", FEATURES),
            ("head_type", HEAD_TYPES),
            ("loss", LOSSES),
            ("dtype", ("auto", "bfloat16", "float32")),
        ):
            if getattr(self, name) not in known:
                raise SparseRMError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(known)}.")
        tracker_names(self.report_to)
        unknown = set(self.debias_names) - set(STYLES)
        if unknown:
            raise SparseRMError(
                f"debias names {sorted(unknown)[0]!r}, but may name {', '.join(STYLES)}, separated by commas, or none."
            )
        for name, least in (("k", 1), ("head_hidden_size", 1), ("max_length", MIN_LENGTH), ("seed", 0)):
            if getattr(self, name) < least:
                raise SparseRMError(f"{name} is {getattr(self, name)}, but must be at least {least}.")
        if self.loss == "margin" and not self.gamma > 0:
            raise SparseRMError(
                f"gamma is {self.gamma}, but must be above 0, or every head without weights is perfect."
            )

    @property
    def debias_names(self) -> list[str]:
        """Which styles rewards must not follow."""
        return [name for name in map(str.strip, self.debias.split(",")) if name != "none"]

    @property
    def readings(self) -> tuple[str, ...]:
        """What is read of each latent; where one token is pooled, the mean of its tokens and the last are the same."""
        alike = self.features == "all" and self.pooling == "last"
        return FEATURES["both" if alike else self.features]
