"""Combine reward models of one base model into one reward model with several objectives.

Each head gives the same rewards as before. The directions are made anew from the latents of all models, so that each
latent has one direction, and one term in the combined reward.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..base_models import cast_weights
from ..conversations import TokenizedPreferences
from ..evaluation import (
    DriftReference,
    Evaluation,
    SavedRewardModel,
    objective_margins,
    prompt_features,
    reward_represented,
    shard_features,
)
from ..hub_cards.render import render_combined_card
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.head_sparserm import PromptGate
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Representations
from ..runtime import SparseRMError, as_numpy, check_output_dir, process_state
from .calibration import fit_temperature, fit_weights
from .checkpoint import write_checkpoint
from .combined_heads import Member, check_shared, combine_heads
from .gating import fit_gate
from .latent_records import warn_of_purity
from .objective_rows import RESERVED
from .trained_model import TrainedModel

logger = logging.getLogger(__name__)

MOST_WEIGHT = 1e6


def combine(
    models: Sequence[str],
    output_dir: Path | str,
    weights: Sequence[float] | None = None,
    rows: Any = None,
    slim: bool = False,
    cache_dir: Path | None = None,
    gate: bool = False,
) -> Evaluation | None:
    """Combine reward models that share base model, layer, SAE and pooling into one reward model, and write it.

    A response runs through the base model once and gets a reward for each objective, the same as from that objective's
    own model. The combined reward is the sum of these rewards, standardised over the training responses of each model
    and multiplied by the weights.

    Args:
        models: Folders or Hub ids of self-contained reward models with linear heads. Each
            objective is named after the last part of its model's name.
        output_dir: Folder to write.
        weights: A weight for each model. By default they are fitted to `rows`, or 1 each without rows.
        rows: Preference pairs that are labelled by overall preference, in any of TRL's formats.
        slim: Write a slim checkpoint, without base model and SAE.
        cache_dir: Folder of cached representations; by default in `HF_HOME`.
        gate: Fit a gate to `rows`, which weighs the objectives by the prompt. The gate is left out, with a warning,
            unless it makes the preferences of held-out rows more likely.

    Returns:
        Evaluation of the combined reward and of each objective on `rows`; None without rows.

    Raises:
        SparseRMError: The models do not share base model, SAE and pooling, a model cannot be combined, there are fewer
            than two or too many latents together, or the folder holds something else than a reward model.

    Example:
        ```python
        from sparserm_hf import combine, load_preferences

        pairs = load_preferences("my-test-pairs.jsonl")
        print(combine(["my-reward-model", "another-reward-model"], "my-combined-reward-model", rows=pairs))
        ```
    """
    folder = Path(output_dir)
    _check_arguments(models, weights, folder, gate and rows is None)
    saved, members = _load(models)
    evaluation, reference = _weigh(saved, members, weights, rows, cache_dir, gate)
    if process_state().is_main_process:
        model = _as_saved(saved.model, SparseRMConfig.from_pretrained(models[0]).dtype, slim)
        card = render_combined_card(folder.name, model.config, evaluation)
        write_checkpoint(folder, model, saved.tokenizer, [], reference, evaluation, card)
    return evaluation


def _check_arguments(
    models: Sequence[str], weights: Sequence[float] | None, folder: Path, gate_without_rows: bool
) -> None:
    check_output_dir(folder)
    if gate_without_rows:
        raise SparseRMError(
            "A gate is fitted to pairs that are labelled by overall preference: give them with --dataset."
        )
    names = list(map(_name, models))
    if any(Path(model).resolve() == folder.resolve() for model in models):
        raise SparseRMError(
            f"The combined model would replace {str(folder)!r}, one of its models: name another folder."
        )
    if len(names) < 2 or len({*names, *RESERVED}) < len(names) + len(RESERVED):
        raise SparseRMError(
            f"The objectives are named {', '.join(names)}, but there must be several, with names of their own other "
            f"than {' and '.join(RESERVED)}: name the folders of several reward models."
        )
    if weights is None:
        return
    if len(weights) != len(names) or not any(weights) or not all(abs(weight) < MOST_WEIGHT for weight in weights):
        raise SparseRMError(
            f"The weights are {', '.join(map(str, weights))} for {len(names)} reward models: give a number for each, "
            "not all of them zero."
        )


def _name(model: str) -> str:
    """Name an objective after its reward model's folder, or after its repository on the Hub."""
    return Path(model).resolve().name if Path(model).is_dir() else Path(model).name


def _load(models: Sequence[str]) -> tuple[SavedRewardModel, list[Member]]:
    """Load the reward models one by one, and assemble the combined model on the base model of the first."""
    first = SavedRewardModel.load(models[0])
    members = [Member.load(_name(models[0]), first)]
    for model in models[1:]:
        members.append(Member.load(_name(model), SavedRewardModel.load(model)))
        check_shared(members[0], members[-1])
    return replace(first, model=assemble(first.model, members), controls=[]), members


def _as_saved(
    model: SparseRMForSequenceClassification, dtype: torch.dtype | None, slim: bool
) -> SparseRMForSequenceClassification:
    """Turn an evaluated model into the form and the data type of its checkpoint; no precision is lost."""
    model.config.dtype = dtype or model.model.dtype
    cast_weights(model.model, model.config.dtype)
    return model.to_slim() if slim else model


def assemble(model: SparseRMForSequenceClassification, members: Sequence[Member]) -> SparseRMForSequenceClassification:
    """Assemble the combined reward model, with a weight of 1 for each objective, on the base model of one member."""
    heads = combine_heads(members)
    warn_of_purity(np.array([latent.id for latent in heads.latents]), heads.directions.purities)
    config = copy.deepcopy(model.config)
    config.latents, config.k_accuracies = heads.latents, {}
    config.ensemble, config.pessimism = 0, 0.0
    config.objectives = [
        {"name": m.name, "weight": 1.0, "reward_mean": m.config.reward_mean, "reward_std": m.config.reward_std or 1.0}
        for m in members
    ]
    combined = SparseRMForSequenceClassification(config, model.model)
    combined.sae = model.sae
    for name, value in (
        ("directions", heads.directions.rows),
        ("feature_mean", heads.average),
        ("empty_features", heads.empty),
    ):
        setattr(combined, name, torch.from_numpy(value).float().to(model.device))
    assert combined.objectives is not None
    with torch.no_grad():
        combined.objectives.weight.copy_(torch.from_numpy(heads.weights))
        combined.objectives.bias.copy_(torch.from_numpy(heads.biases))
    combined.freeze()
    return combined.to(model.device).eval()


def _weigh(
    saved: SavedRewardModel,
    members: Sequence[Member],
    weights: Sequence[float] | None,
    rows: Any,
    cache_dir: Path | None,
    gate: bool,
) -> tuple[Evaluation | None, DriftReference | None]:
    if rows is None:
        weigh_blindly(saved.model, members, weights)
        return None, None
    return _weigh_by_pairs(saved, weights, rows, cache_dir, gate)


def weigh_blindly(
    model: SparseRMForSequenceClassification, members: Sequence[Member], weights: Sequence[float] | None = None
) -> None:
    """Weigh the objectives without pairs, in place, and estimate the scale of the combined reward.

    The standard deviation is right if the objectives are independent. The temperature is right where all objectives
    agree: the combined reward then gives the same probability as each of them.
    """
    config, given = model.config, [1.0] * len(members) if weights is None else [float(weight) for weight in weights]
    model.weigh(dict(zip(config.objective_names, given, strict=True)))
    of_members = [member.config.reward_temperature for member in members]
    config.reward_mean, config.reward_std = 0.0, float(np.linalg.norm(given))
    config.reward_temperature = float(np.abs(as_numpy(model.objective_factors())) @ of_members)


def _weigh_by_pairs(
    saved: SavedRewardModel, weights: Sequence[float] | None, rows: Any, cache_dir: Path | None, gate: bool
) -> tuple[Evaluation, DriftReference]:
    """Weigh the objectives, in place, by pairs unless weights are given; measure the combined reward on the pairs.

    Returns:
        The evaluation, and the statistics of the pairs' responses for `sparserm monitor`.

    Raises:
        SparseRMError: No objective agrees with the pairs.
    """
    model, config, pairs = saved.model, saved.model.config, saved.tokenize(rows)
    representations = saved.represent(pairs.texts, cache_dir, gate)
    if weights is None:
        weights = fit_weights(objective_margins(model, representations, pairs)).tolist()
        if not any(weights):
            raise SparseRMError("No objective agrees with the pairs, so there is nothing to fit: give the weights.")
    model.weigh(dict(zip(config.objective_names, map(float, weights), strict=True)))
    if gate:
        _add_gate(model, representations, pairs)
    of_texts, reference = measure_rewards(model, representations)
    config.reward_temperature = fit_temperature(of_texts[pairs.chosen] - of_texts[pairs.rejected])
    trained = TrainedModel(model, model.model, lambda texts: saved.represent(texts, cache_dir, gate))
    return trained.evaluate([], pairs, saved.encoder()), reference


def _add_gate(
    model: SparseRMForSequenceClassification, representations: Representations, pairs: TokenizedPreferences
) -> None:
    """Fit a gate to pairs, and add it to the weighed model, in place, if it helps on held-out pairs.

    Args:
        model: The combined reward model.
        representations: Representations of the pairs' texts, with their prompts.
        pairs: The pairs.
    """
    weights = [of["weight"] for of in model.config.objectives]
    margins = objective_margins(model, representations, pairs) * weights
    gate = fit_gate(prompt_features(model, representations, pairs), margins, np.array(pairs.groups))
    if not gate.helps:
        logger.warning("The prompts do not tell which objective counts, so the model is written without a gate.")
        return
    model.config.gate = True
    module = PromptGate(model.config).to(model.directions.device)
    module.weight.data.copy_(torch.from_numpy(gate.weight))
    module.average.copy_(torch.from_numpy(gate.average))
    model.score.gate = module
    model.freeze()


def measure_rewards(
    model: SparseRMForSequenceClassification, representations: Representations
) -> tuple[np.ndarray, DriftReference]:
    """Measure the mean and the standard deviation of a combined reward on N texts, and set them in the configuration.

    Returns:
        (N,) rewards, and the statistics of the texts for `sparserm monitor`.
    """
    rewards = reward_represented(model, representations)
    model.config.reward_mean, model.config.reward_std = float(rewards.mean()), float(rewards.std())
    features = representations.read(lambda shard: as_numpy(shard_features(model, shard)))
    return rewards, DriftReference.of(features, rewards, None)
