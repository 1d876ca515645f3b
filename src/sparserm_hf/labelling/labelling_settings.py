"""The settings of `sparserm label`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..align import AlignmentConfig
from ..runtime import option
from ..training import SparseRMTrainingConfig

MODEL_FOLDER = "reward-model"


@dataclass
class LabellingConfig:
    """Settings of `label` and `sparserm label`; each field's `help` describes it.

    Raises:
        SparseRMError: A setting is out of its range.

    Example:
        >>> LabellingConfig("my-labels", num_responses=2).port
        8001
    """

    output_dir: str = field(
        metadata={"help": "Folder of labels, responses and reward model; an earlier session in it is continued."}
    )
    num_responses: int = option(4, "Number of responses that the policy writes to each question.")
    max_new_tokens: int = option(128, "Maximum number of tokens of a response.")
    temperature: float = option(0.7, "Sampling temperature.")
    layer: int | None = option(
        None, "Number of decoder layers of the base model to keep; by default, the layers before the SAE's hook."
    )
    max_length: int = option(1024, "Maximum number of tokens of a text; a longer pair loses the start of its prompt.")
    dtype: Literal["auto", "bfloat16", "float32"] = option("auto", "Data type to run the base model in.")
    check_sae: bool = option(
        True,
        "Check first that the SAE fits the base model and the layer.",
        off="Do not check that the SAE fits the base model and the layer.",
    )
    cache_dir: str | None = option(None, "Folder to cache representations in; by default, sparserm in HF_HOME.")
    port: int = option(8001, "Port of the page; 0 takes a free port.")
    seed: int = option(42, "Random seed.")

    def __post_init__(self) -> None:
        self.writing()
        self.training()

    @property
    def folder(self) -> Path:
        """Folder of the session."""
        return Path(self.output_dir)

    def training(self, exclude_latents: str = "") -> SparseRMTrainingConfig:
        """Make the settings of the reward model's training."""
        return SparseRMTrainingConfig(
            str(self.folder / MODEL_FOLDER),
            layer=self.layer,
            max_length=self.max_length,
            dtype=self.dtype,
            check_sae=self.check_sae,
            cache_dir=self.cache_dir,
            seed=self.seed,
            exclude_latents=exclude_latents,
        )

    def writing(self) -> AlignmentConfig:
        """Make the settings by which a policy writes responses."""
        return AlignmentConfig(
            self.output_dir,
            pairs="best-of-n",
            num_samples=self.num_responses,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
