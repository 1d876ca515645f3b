"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ..base_models import QUANTIZATIONS
from ..conversations import STYLES
from ..modeling.fields_sparserm import DIRECTIONS, HEAD_TYPES, POOLINGS, REPRESENTATION_NORMS
from ..runtime import SparseRMError, tracker_names
from .head import LOSSES

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
    directions: Literal["orthogonal", "raw"] = _option(
        "orthogonal",
        "What a response is projected on: the decoder directions of the selected latents made orthonormal, so that "
        "what a latent adds can be taken out by itself, or the decoder directions as they are, as in the paper.",
    )
    # Only beside None does HfArgumentParser take a union with str for a string.
    k: int | str | None = _option(
        "auto",
        "Latents selected on either side: K that fire more on chosen, K on rejected responses (the paper: 128); auto: "
        "the fewest within one standard error of the best cross-validated accuracy.",
    )
    head_type: Literal["linear", "mlp"] = _option("linear", "Head: linear, which is explained exactly, or an MLP.")
    head_hidden_size: int = _option(512, "Width of the MLP head's hidden layer.")
    loss: Literal["margin", "bradley_terry", "bce"] = _option("margin", "Loss that the head is fitted with.")
    gamma: float = _option(1.0, "Margin that every pair must keep, for the margin loss.")
    max_length: int = _option(1024, "Most tokens of a text; longer pairs lose the start of their prompt.")
    dtype: Literal["auto", "bfloat16", "float32"] = _option(
        "auto",
        "Type the base model runs in; auto: bfloat16 where the hardware is good at it, else float32.",
    )
    quantization: Literal["none", "bnb-4bit", "bnb-8bit"] = _option(
        "none", "Pack the base model's weights on loading, by bitsandbytes; a base model that is quantised stays so."
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
            ("directions", DIRECTIONS),
            ("head_type", HEAD_TYPES),
            ("loss", LOSSES),
            ("dtype", ("auto", "bfloat16", "float32")),
            ("quantization", QUANTIZATIONS),
        ):
            if getattr(self, name) not in known:
                raise SparseRMError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(known)}.")
        tracker_names(self.report_to)
        unknown = set(self.debias_names) - set(STYLES)
        if unknown:
            raise SparseRMError(
                f"debias names {sorted(unknown)[0]!r}, but may name {', '.join(STYLES)}, separated by commas, or none."
            )
        if self.k != "auto":
            try:
                self.k = int(self.k or 0)
            except ValueError:
                raise SparseRMError(f"k is {self.k!r}, but must be a number of latents, or auto.") from None
            if self.k < 1:
                raise SparseRMError(f"k is {self.k}, but must be at least 1.")
        for name, least in (("head_hidden_size", 1), ("max_length", MIN_LENGTH), ("seed", 0)):
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
