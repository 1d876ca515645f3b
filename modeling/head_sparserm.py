"""The reward head: what turns a text's features into its reward."""

from torch import nn

from .configuration_sparserm import SparseRMConfig


class LinearHead(nn.Linear):
    """The linear reward head, (B, K) to (B, 1).

    A class of its own, so that FSDP takes it as a unit: it is in float32 whatever the base model is in.
    """

    def __init__(self, config: SparseRMConfig):
        super().__init__(len(config.latents), 1)


class MLPHead(nn.Sequential):
    """The reward head with a hidden layer, (B, K) to (B, 1)."""

    def __init__(self, config: SparseRMConfig):
        width = config.head_hidden_size
        super().__init__(nn.Linear(len(config.latents), width), nn.ReLU(), nn.Linear(width, 1))


HEADS = {"linear": LinearHead, "mlp": MLPHead}
