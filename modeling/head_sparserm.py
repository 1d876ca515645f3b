"""The reward head: what turns a text's features into its reward."""

import torch
from torch import nn

from .configuration_sparserm import SparseRMConfig


class LinearHead(nn.Linear):
    """The linear reward head, (B, K) to (B, 1).

    A class of its own, so that FSDP takes it as a unit: it is in float32 whatever the base model is in.
    """

    def __init__(self, config: SparseRMConfig):
        super().__init__(len(config.latents), 1)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; the replicas of DataParallel have no parameters to ask."""
        return self.weight.dtype


class MLPHead(nn.Sequential):
    """The reward head with a hidden layer, (B, K) to (B, 1)."""

    def __init__(self, config: SparseRMConfig):
        width = config.head_hidden_size
        super().__init__(nn.Linear(len(config.latents), width), nn.ReLU(), nn.Linear(width, 1))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, see `LinearHead.dtype`."""
        return self[0].weight.dtype


HEADS = {"linear": LinearHead, "mlp": MLPHead}
