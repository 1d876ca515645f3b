"""Assembly of a reward model from its frozen parts and a fitted head."""

from __future__ import annotations

import copy

import torch

from ..base_models import cast_weights
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.latents_sparserm import Latent
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from .calibration import fit_temperature
from .config import SparseRMTrainingConfig
from .parts import FrozenParts
from .steps import FittedRewardHead


def assemble_model(
    parts: FrozenParts, fitted: FittedRewardHead, args: SparseRMTrainingConfig, latents: list[Latent]
) -> SparseRMForSequenceClassification:
    """Assemble a reward model, frozen except for its head, in eval mode; the parts are not changed.

    Args:
        parts: Cut base model, SAE and tokenizer.
        fitted: Head, directions and features of the training texts.
        args: Settings of the training run.
        latents: Records of the selected latents.
    """
    config, base_model = _make_config(parts, fitted, args, latents), parts.base_model
    if base_model.dtype != parts.saved_dtype:  # a copy: the given model keeps running in its fastest data type
        base_model = cast_weights(copy.deepcopy(base_model), parts.saved_dtype)
    features = fitted.projection.features  # (T, 2K)
    rewards = fitted.head.rewards(features)
    model = SparseRMForSequenceClassification(config, base_model)
    model.config.dtype = parts.saved_dtype
    model.config.reward_mean, model.config.reward_std = float(rewards.mean()), float(rewards.std())
    model.sae = parts.sae.autoencoder
    model.directions = torch.from_numpy(fitted.projection.directions.rows).float()
    model.feature_mean = torch.from_numpy(features.mean(0)).float()
    # An empty response has no pooled tokens. It gets the features of the worst training response.
    model.empty_features = torch.from_numpy(features[rewards.argmin()]).float()
    with torch.no_grad():
        for module, (weight, bias) in zip(model.score.layers, fitted.head.layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(bias))
        if fitted.ensemble:
            model.score.ensemble.weight.copy_(torch.from_numpy(fitted.ensemble.weights))
            model.score.ensemble.bias.copy_(torch.from_numpy(fitted.ensemble.biases))
    model.freeze()
    return model.eval()


def _make_config(
    parts: FrozenParts, fitted: FittedRewardHead, args: SparseRMTrainingConfig, latents: list[Latent]
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
        sae=parts.sae.autoencoder.spec(),
        sae_source=parts.sae.source,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        run_dtype=str(parts.base_model.dtype).removeprefix("torch."),
        latents=latents,
        adapter_rank=parts.adapter_rank,
        ensemble=args.ensemble,
    )
    config.name_or_path = args.output_dir  # trainers load the tokenizer from it
    if fitted.head.held_out_margins is not None:
        config.reward_temperature = fit_temperature(fitted.head.held_out_margins)
    return config
