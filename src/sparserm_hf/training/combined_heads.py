"""Move the heads of several reward models to shared directions, without a change of their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..base_models import fingerprint_module
from ..evaluation import SavedRewardModel
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.latents_sparserm import Latent
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, as_numpy
from .directions import Directions, directions_through

# Fields of the configuration that all members must have in common.
SHARED = ("layer", "pooling", "representation_norm", "directions", "response_marks", "run_dtype")


@dataclass(frozen=True)
class Member:
    """The linear head of a reward model that is combined with others.

    Attributes:
        name: Name of its objective.
        config: Configuration of the reward model.
        weight: (K,) weights of the head, with the steering applied.
        bias: Bias of the head, with the steering applied.
        empty: Reward of an empty response.
        rows: (K, d_model) directions.
        average: (K,) features of the average training response.
        decoder: (K, d_model) decoder directions of its latents.
        shared: Traits that all members must have in common; see `shared_traits`.
    """

    name: str
    config: SparseRMConfig
    weight: np.ndarray
    bias: float
    empty: float
    rows: np.ndarray
    average: np.ndarray
    decoder: np.ndarray
    shared: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str, saved: SavedRewardModel) -> Member:
        """Take the head of a loaded reward model.

        Raises:
            SparseRMError: The model is slim, combined already or pessimistic, its head is an MLP, or it was saved by
                version 0.1.
        """
        model, config = saved.model, saved.model.config
        for reason, holds in (
            ("it is slim, without its SAE: train it without --slim", model.sae is None),
            ("its reward is no sum over latents: train it with --head_type linear", config.head_type != "linear"),
            ("it is a combined one: combine the models that it was made of", bool(config.objectives)),
            ("its pessimism is no sum over latents: edit it with --pessimism 0", config.pessimism != 0),
            ("it was saved by version 0.1: train it anew", config.response_marks is None),
        ):
            if holds:
                raise SparseRMError(f"The reward model {name!r} cannot be combined, as {reason}.")
        return replace(cls.of(name, model), shared=shared_traits(saved))

    @classmethod
    def of(cls, name: str, model: SparseRMForSequenceClassification) -> Member:
        """Take the head of a reward model with a linear head and its SAE."""
        assert model.sae is not None
        weight, average = as_numpy(model.score.weight[0]), as_numpy(model.feature_mean)
        factors, bias = as_numpy(model.steering_factors()), float(as_numpy(model.score.bias)[0])
        return cls(
            name=name,
            config=model.config,
            weight=weight * factors,
            bias=bias + float(weight @ ((1 - factors) * average)),
            empty=bias + float(weight @ as_numpy(model.empty_features)),
            rows=as_numpy(model.directions),
            average=average,
            decoder=as_numpy(model.sae.W_dec[model.config.latent_ids]),
        )


@dataclass(frozen=True)
class CombinedHeads:
    """The heads of several objectives on shared directions.

    Attributes:
        latents: Records of the latents, those for the chosen side first.
        directions: The K directions of these latents.
        weights: (objectives, K) weights of the heads.
        biases: (objectives,) biases.
        average: (K,) features of the average training response.
        empty: (K,) features of an empty response.
    """

    latents: list[Latent]
    directions: Directions
    weights: np.ndarray
    biases: np.ndarray
    average: np.ndarray
    empty: np.ndarray


def combine_heads(members: Sequence[Member]) -> CombinedHeads:
    """Put the heads of several reward models on shared directions; their rewards stay the same.

    Raises:
        SparseRMError: The models together have too many latents for the base model's dimensions, or fewer than there
            are models, or their rewards are multiples of each other except on an empty response.
    """
    latents = _merge_latents(members)
    position = {latent.id: i for i, latent in enumerate(latents)}
    decoder = np.zeros((len(latents), members[0].rows.shape[1]))
    for member in members:
        decoder[[position[latent] for latent in member.config.latent_ids]] = member.decoder
    if members[0].config.directions == "orthogonal":
        if len(latents) >= decoder.shape[1] or len(latents) < len(members):
            raise SparseRMError(
                f"The reward models have {len(latents)} latents together, but there must be at least one for each "
                f"model and fewer than the base model's {decoder.shape[1]} dimensions: train them with another --k."
            )
        along = np.stack([member.weight @ member.rows for member in members])  # (objectives, d_model)
        directions = directions_through(decoder, along)
        weights = along @ directions.rows.T
    else:
        directions, weights = Directions(decoder, np.ones(len(latents))), np.zeros((len(members), len(latents)))
        for row, member in zip(weights, members, strict=True):
            row[[position[latent] for latent in member.config.latent_ids]] = member.weight
    # The shortest vectors that give each member its average features, and its reward of an empty response.
    all_rows, averages = (np.concatenate([getattr(m, of) for m in members]) for of in ("rows", "average"))
    average = directions.rows @ np.linalg.lstsq(all_rows, averages, rcond=None)[0]
    biases = np.array([member.bias for member in members])
    wanted = np.array([member.empty for member in members]) - biases
    empty = np.linalg.lstsq(weights, wanted, rcond=None)[0]
    if not np.allclose(weights @ empty, wanted, rtol=1e-4, atol=1e-6):
        raise SparseRMError(
            f"The rewards of {', '.join(member.name for member in members)} are multiples of each other, but not "
            "those of an empty response: leave one of the models out."
        )
    latents = [replace(x, purity=round(float(y), 6)) for x, y in zip(latents, directions.purities, strict=True)]
    return CombinedHeads(latents, directions, weights, biases, average, empty)


def _merge_latents(members: Sequence[Member]) -> list[Latent]:
    """List the latents of all members, the chosen side first; of a shared latent, the first record is kept."""
    merged: dict[int, Latent] = {}
    for member in members:
        for latent in member.config.latents:
            merged.setdefault(latent.id, replace(latent, steering=1.0))
    return sorted(merged.values(), key=lambda latent: latent.side != "chosen")


def shared_traits(saved: SavedRewardModel) -> dict[str, Any]:
    """Collect the traits that combined reward models must share, by the name of the trait in an error."""
    model, tokenizer = saved.model, saved.tokenizer
    assert model.sae is not None
    return {name: getattr(model.config, name) for name in SHARED} | {
        "base model": fingerprint_module(model.model),
        "SAE": fingerprint_module(model.sae),
        "chat template": tokenizer.chat_template,
        "maximum length": tokenizer.model_max_length,
    }


def check_shared(first: Member, other: Member) -> None:
    """Raise a `SparseRMError` unless two reward models can be combined."""
    for what, value in other.shared.items():
        if value != first.shared[what]:
            adapted = what == "base model" and (first.config.adapter_rank or other.config.adapter_rank)
            raise SparseRMError(
                f"The reward models {first.name!r} and {other.name!r} cannot be combined, as they differ in their "
                f"{what.replace('_', ' ')}{', which an adapter has changed' if adapted else ''}: train them alike."
            )
