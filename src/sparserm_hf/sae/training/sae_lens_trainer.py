"""Make sae-lens' trainer with an untrained SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...runtime import SparseRMError, preferred_dtype
from .sae_config import SAETrainingConfig

if TYPE_CHECKING:
    from sae_lens import SAETrainer


class BatchTopK(nn.Module):
    """Keep the k * B largest of (B, d_sae) activations and zero the rest, as the module of this name in sae-lens does.

    The module of sae-lens sorts all activations, which takes a quarter of a training step on a CPU. This module sorts
    only the activations above nine tenths of the last step's threshold, unless they are too few.

    Example:
        >>> BatchTopK(1)(torch.tensor([[3.0, 1.0], [2.0, 0.5]]))
        tensor([[3., 0.],
                [2., 0.]])
    """

    def __init__(self, k: int):
        super().__init__()
        self.k, self.threshold = k, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (B, d_sae) activations with zeros below the threshold; ties at the threshold are all kept."""
        count = self.k * len(x)
        with torch.no_grad():
            largest = x[x > 0.9 * self.threshold]
            if len(largest) < count:
                largest = x.flatten()
            threshold = largest.topk(count, sorted=False).values.min().clamp(min=torch.finfo(x.dtype).tiny)
            self.threshold = threshold.item()
        return torch.where(x >= threshold, x, 0.0)


def new_trainer(config: SAETrainingConfig, d_in: int, device: torch.device) -> SAETrainer:
    """Make a trainer of sae-lens with an untrained SAE. `training_loop` feeds it step by step.

    Args:
        config: Training settings.
        d_in: Width of the residual stream.
        device: Device of the SAE.

    Raises:
        SparseRMError: k is larger than the number of latents.
    """
    from sae_lens import LoggingConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig

    sae = _untrained_sae(config, d_in, device)
    trainer_config = SAETrainerConfig(
        total_training_samples=config.steps * config.step_tokens,
        train_batch_size_samples=config.step_tokens,
        lr=config.learning_rate,
        lr_end=config.learning_rate / 10,
        lr_warm_up_steps=config.steps // 20,
        lr_decay_steps=config.steps // 3,
        device=str(device),
        autocast=preferred_dtype(device) == torch.bfloat16,
        dead_feature_window=max(100, config.steps // 8),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(trainer_config, sae, iter(()))


def _untrained_sae(config: SAETrainingConfig, d_in: int, device: torch.device) -> Any:
    """Make an SAE with random weights, in sae-lens' training form."""
    import sae_lens

    torch.manual_seed(config.seed)
    d_sae = 8 * d_in if config.d_sae is None else config.d_sae
    if config.k > d_sae:
        raise SparseRMError(f"k is {config.k}, but must be between 1 and the number of latents, {d_sae}.")
    shape: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": str(device)}
    if config.architecture == "batchtopk":
        sae: Any = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=config.k, **shape))
        sae.activation_fn = BatchTopK(config.k)
        return sae
    if config.architecture == "topk":
        return sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=config.k, **shape))
    settings = sae_lens.JumpReLUTrainingSAEConfig(
        jumprelu_sparsity_loss_mode="quadratic",  # around a target number of active latents, as in Gemma Scope 2
        target_l0=config.k,
        l0_warm_up_steps=config.steps // 10,
        jumprelu_init_threshold=0.3,  # from sae-lens' 0.01, thresholds change too little in a short run
        jumprelu_bandwidth=0.3,
        **shape,
    )
    return sae_lens.JumpReLUTrainingSAE(settings)
