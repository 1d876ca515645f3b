"""Assembly of a reward model from its frozen parts and a fitted head."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..base_models import cast_weights
from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.head_sparserm import Affine
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from .calibration import fit_temperature
from .config import SparseRMTrainingConfig
from .head import FittedHead
from .parts import FrozenParts
from .reward_head import FittedRewardHead


def assemble_model(
    parts: FrozenParts, fitted: FittedRewardHead, args: SparseRMTrainingConfig, latents: dict[str, Any]
) -> SparseRMForSequenceClassification:
    """Assemble a reward model on the CPU or device of its base model, frozen except for the head, in eval mode.

    Args:
        parts: Cut base model, SAE and tokenizer.
        fitted: Head, directions and features of the training texts.
        args: Settings of the training run.
        latents: Fields of `SparseRMConfig` that describe the selected latents.
    """
    features = fitted.projection.features
    rewards = fitted.head.rewards(features)
    config = _make_config(parts, fitted, args, latents)
    config.reward_mean, config.reward_std = float(rewards.mean()), float(rewards.std())
    return build_model(
        config,
        parts.base_model,
        parts.saved_dtype,
        parts.sae.autoencoder,
        fitted.projection.directions.rows,
        fitted.head,
        feature_mean=features.mean(0),
        # An empty response has no features of its own: it gets those of the worst training response.
        empty_features=features[rewards.argmin()],
    )


def _make_config(
    parts: FrozenParts, fitted: FittedRewardHead, args: SparseRMTrainingConfig, latents: dict[str, Any]
) -> SparseRMConfig:
    tokenizer, accuracies = parts.tokenizer, fitted.selected.k_accuracies
    config = SparseRMConfig(
        base_config=parts.base_model.config,
        base_model_name_or_path=parts.recorded_name,
        base_model_revision=parts.revision,
        layer=parts.layer,
        pooling=args.pooling,
        response_marks=parts.encoder.marks,
        representation_norm=args.representation_norm,
        directions=args.directions,
        k_accuracies={str(k): round(accuracy, 6) for k, accuracy in accuracies.items()},
        head_type=args.head_type,
        head_hidden_size=args.head_hidden_size,
        sae=parts.sae.autoencoder.spec(),
        sae_source=parts.sae.source,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        run_dtype=str(parts.base_model.dtype).removeprefix("torch."),
        **latents,
    )
    config._name_or_path = args.output_dir  # trainers load the tokenizer from it
    if fitted.head.held_out_margins is not None:
        config.reward_temperature = fit_temperature(fitted.head.held_out_margins)
    return config


def build_model(
    config: SparseRMConfig,
    base_model: PreTrainedModel,
    dtype: torch.dtype,
    sae: SparseAutoencoder,
    directions: np.ndarray,
    head: FittedHead,
    feature_mean: np.ndarray,
    empty_features: np.ndarray,
) -> SparseRMForSequenceClassification:
    """Put a cut base model, an SAE and a fitted head together, frozen except for the head, in eval mode.

    Args:
        config: Configuration of the reward model; its latents are those of `directions`.
        base_model: Cut base model; it is not changed.
        dtype: Data type of the base model's weights in the reward model.
        sae: The whole SAE.
        directions: (K, d_model) directions that the features are projections on.
        head: Head on these features.
        feature_mean: (K,) average features of the training responses.
        empty_features: (K,) features of an empty response.
    """
    if base_model.dtype != dtype:  # a copy, as the given model goes on running in its fastest type
        base_model = cast_weights(copy.deepcopy(base_model), dtype)
    model = SparseRMForSequenceClassification(config, base_model)
    model.config.dtype = dtype
    model.sae = sae
    model.directions = torch.from_numpy(directions).float()
    model.feature_mean = torch.from_numpy(feature_mean).float()
    model.empty_features = torch.from_numpy(empty_features).float()
    affine = [module for module in model.score.modules() if isinstance(module, Affine)]
    with torch.no_grad():
        for module, (weight, bias) in zip(affine, head.layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(bias))
    model.freeze()
    return model.eval()
