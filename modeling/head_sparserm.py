"""The heads as modules: linear or MLP, the heads of objectives and of an ensemble, and the gate over objectives."""

import torch
from torch import nn

from .configuration_sparserm import SparseRMConfig


class Affine(nn.Module):
    """An affine layer, (B, in) to (B, out). It is not an `nn.Linear`, because quantisers pack every `nn.Linear`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.02)  # as transformers initialises an `nn.Linear`
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the weight and add the bias."""
        return nn.functional.linear(x, self.weight, self.bias)


class ObjectiveHeads(Affine):
    """The linear heads of the objectives of a combined reward model, (B, K) to (B, objectives)."""

    def __init__(self, config: SparseRMConfig):
        super().__init__(len(config.latents), len(config.objectives))


class EnsembleHeads(Affine):
    """Linear heads that were fitted on bootstrap samples of the prompts, (B, K) to (B, heads)."""

    def __init__(self, config: SparseRMConfig):
        super().__init__(len(config.latents), config.ensemble)


class PromptGate(nn.Module):
    """The gate of a combined reward model: it reads the prompt, and tells how much each objective counts there.

    The shares are `objectives * softmax(weight @ (features - average))`. So they are 1 at the average prompt.

    Attributes:
        weight: (objectives, K) weights.
        average: (K,) features of the average prompt that the gate was fitted on.
    """

    average: torch.Tensor

    def __init__(self, config: SparseRMConfig):
        super().__init__()
        k = len(config.latents)
        self.weight = nn.Parameter(torch.zeros((len(config.objectives), k)))
        self.register_buffer("average", torch.zeros(k, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Turn (B, K) features of prompts into the (B, objectives) shares of the objectives."""
        # The average is subtracted before the features are rounded to the type of the weight.
        logits = nn.functional.linear((features - self.average).to(self.weight), self.weight)
        return len(self.weight) * logits.float().softmax(-1)

    def terms(self, features: torch.Tensor) -> torch.Tensor:
        """Split each logit, minus the mean logit, into one term for each latent: (B, K) to (B, objectives, K)."""
        return (self.weight - self.weight.mean(0)) * (features - self.average).unsqueeze(1)


class LinearHead(Affine):
    """The linear reward head, (B, K) to (B, 1).

    In a combined reward model it is the weighted sum of the heads in `objectives`. With a `gate`, the weights depend
    on the prompt.

    It has a class of its own so that FSDP wraps it separately: the head is in float32, but the base model may not be.
    """

    def __init__(self, config: SparseRMConfig):
        super().__init__(len(config.latents), 1)
        self.objectives = ObjectiveHeads(config) if config.objectives else None
        self.ensemble = EnsembleHeads(config) if config.ensemble else None
        self.gate = PromptGate(config) if config.gate else None

    @property
    def layers(self) -> list[Affine]:
        """The affine layers from the features to the reward."""
        return [self]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights; `parameters()` cannot tell it, as it is empty in the replicas of DataParallel."""
        return self.weight.dtype


class MLPHead(nn.Sequential):
    """The reward head with a hidden layer, (B, K) to (B, 1). It has no further heads beside it."""

    objectives = ensemble = gate = None

    def __init__(self, config: SparseRMConfig):
        width = config.head_hidden_size
        super().__init__(Affine(len(config.latents), width), nn.ReLU(), Affine(width, 1))

    @property
    def layers(self) -> list[Affine]:
        """The affine layers from the features to the reward, see `LinearHead.layers`."""
        return [self[0], self[2]]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights, see `LinearHead.dtype`."""
        return self[0].weight.dtype


HEADS = {"linear": LinearHead, "mlp": MLPHead}


def further_heads(config: SparseRMConfig) -> list[type[nn.Module]]:
    """List the classes of the further heads that a reward model of this configuration has."""
    given = {ObjectiveHeads: config.objectives, EnsembleHeads: config.ensemble, PromptGate: config.gate}
    return [kind for kind, present in given.items() if present]
