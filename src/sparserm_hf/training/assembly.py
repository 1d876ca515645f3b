"""A reward model out of its parts."""

from __future__ import annotations

import copy

import numpy as np
import torch
from transformers import PreTrainedModel

from ..base_models import cast_weights
from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.head_sparserm import Affine
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from .head import FittedHead


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
    """Put a cut base model, an SAE and a fitted head together, frozen but for the head, in eval mode.

    Args:
        config: What the model is; its `latents` are those that the head reads.
        base_model: Cut; it is not changed.
        dtype: Type of the base model's weights in the reward model.
        sae: All of it.
        directions: (K, d_model) what the features are projections on.
        head: Fitted to the features.
        feature_mean: (K,) average features of the training responses.
        empty_features: (K,) features of an empty response.
    """
    if base_model.dtype != dtype:  # a copy: this one goes on running in its fastest type
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
