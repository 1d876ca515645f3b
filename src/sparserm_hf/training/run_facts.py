"""Facts about a training run for the model card: data, settings, hardware and versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

import numpy as np

from ..base_models import count_parameters
from ..conversations import DataSource, TokenizedPreferences
from ..runtime import __version__, device_name, process_state
from .config import SparseRMTrainingConfig
from .objective import FittedHead
from .parts import FrozenParts

MAIN = ("k", "directions", "pooling", "representation_norm", "head_type", "loss", "debias", "max_length", "seed")
# Settings of the machine and the Hub, which do not change the model.
PLACES = ("output_dir", "cache_dir", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo")


@dataclass(frozen=True)
class DataFacts:
    """Counts and lengths of preference pairs; lengths are in tokens.

    Attributes:
        source: Name of the dataset, and its split on the Hub.
        pairs: Number of pairs.
        prompts: Number of prompts; pairs with a text in common count as pairs of one prompt.
        median_response: Median length of the chosen and rejected responses.
        longest_response: Length of the longest response.
        longest_text: Length of the longest prompt with a response, after the cut to the maximum length.
        cut: Number of pairs that lost the start of their prompt.
        left_out: Number of pairs that were left out, by reason.
    """

    source: DataSource
    pairs: int
    prompts: int
    median_response: float
    longest_response: int
    longest_text: int
    cut: int
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, pairs: TokenizedPreferences) -> DataFacts:
        """Count tokenised preference pairs."""
        responses = [len(pairs.texts[i].response) for i in (*pairs.chosen, *pairs.rejected)]
        return cls(
            source=pairs.source,
            pairs=len(pairs),
            prompts=len(set(pairs.groups)),
            median_response=float(np.median(responses)),
            longest_response=max(responses),
            longest_text=int(pairs.lengths.max()),
            cut=pairs.truncated,
            left_out=pairs.left_out,
        )


@dataclass(frozen=True)
class RunFacts:
    """Facts about a training run.

    Attributes:
        data: Numbers about the pairs, by their use: `training`, with the objective if there are several, and
            `held-out` after an evaluation.
        settings: Values of the main settings, and of each other setting that differs from its default.
        defaults: Default of each setting in `settings` that was changed.
        max_length: Maximum number of tokens of a text, by the settings and the limit of the base model.
        device: Model of the GPU or CPU.
        processes: Number of processes, each on a device of its own.
        dtype: Data type that the base model ran in.
        versions: Versions of Python and the libraries, by name.
    """

    data: Mapping[str, DataFacts]
    settings: Mapping[str, Any]
    defaults: Mapping[str, Any]
    max_length: int
    device: str
    processes: int
    dtype: str
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        args: SparseRMTrainingConfig,
        parts: FrozenParts,
        trained: Mapping[str, TokenizedPreferences],
        evaluated: TokenizedPreferences | None,
    ) -> RunFacts:
        """Collect the facts about a run in this process.

        Args:
            args: Settings.
            parts: Base model, SAE and tokenizer.
            trained: Training pairs by objective; without objectives, all pairs are under an empty name.
            evaluated: Evaluation pairs; None if there was no evaluation.
        """
        given = {field.name: getattr(args, field.name) for field in fields(args) if field.name not in PLACES}
        defaults = {field.name: field.default for field in fields(args) if field.name in given}
        changed = {name: default for name, default in defaults.items() if given[name] != default}
        pairs = {f"training, {name}" if name else "training": used for name, used in trained.items()}
        pairs |= {"held-out": evaluated} if evaluated else {}
        state, libraries = (
            process_state(),
            ("torch", "transformers", "sae-lens", *(["peft"] * bool(args.adapter_rank))),
        )
        return cls(
            data={use: DataFacts.of(used) for use, used in pairs.items()},
            settings={name: value for name, value in given.items() if name in MAIN or name in changed},
            defaults=changed,
            max_length=parts.encoder.max_length,
            device=device_name(state.device),
            processes=state.num_processes,
            dtype=str(parts.base_model.dtype).removeprefix("torch."),
            versions={"sparserm-hf": __version__, "Python": platform.python_version()}
            | {name: version(name) for name in libraries},
        )


def training_metrics(
    pairs: TokenizedPreferences, parts: FrozenParts, trainable: int, representation_seconds: float, fit_seconds: float
) -> dict[str, float]:
    """Collect the metrics of a training run.

    Args:
        pairs: Training pairs.
        parts: Base model, SAE and tokenizer.
        trainable: Number of trained parameters.
        representation_seconds: Seconds in which the base model ran on the texts.
        fit_seconds: Seconds in which heads and controls were fitted.
    """
    return {
        "train_pairs": len(pairs),
        "trainable_parameters": trainable,
        "base_parameters": count_parameters(parts.base_model.config),
        "representation_seconds": representation_seconds,
        "fit_seconds": fit_seconds,
    }


def validation_metrics(head: FittedHead, prefix: str = "") -> dict[str, float]:
    """Return the validation accuracy of a head as a metric; empty if no pairs were held out while it was fitted."""
    return {} if head.validation_accuracy is None else {f"{prefix}validation_accuracy": head.validation_accuracy}
