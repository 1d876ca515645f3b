"""The reward head: what turns a text's features into its reward."""

import torch
from torch import nn

from .configuration_sparserm import SparseRMConfig


class Affine(nn.Module):
    """An affine layer, (B, in) to (B, out). Not `nn.Linear`: quantisers pack every `nn.Linear`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.02)  # as transformers starts an `nn.Linear`
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the weight and add the bias."""
        return nn.functional.linear(x, self.weight, self.bias)


class LinearHead(Affine):
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
        super().__init__(Affine(len(config.latents), width), nn.ReLU(), Affine(width, 1))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, see `LinearHead.dtype`."""
        return self[0].weight.dtype


HEADS = {"linear": LinearHead, "mlp": MLPHead}
