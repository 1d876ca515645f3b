"""A reward model made of vLLM's own layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification as TransformersRewardModel
from ..runtime import SparseRMError
from .vllm_pooler import RewardPooler
from .vllm_settings import BASE_CLASSES


class ResidualSum(nn.Module):
    """A replacement for vLLM's final norm that only adds a layer's output to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Add two tensors of one shape; vLLM's models read the first of the two results."""
        return hidden_states + residual, None


def head_from_config(config: SparseRMConfig) -> TransformersRewardModel:
    """Build a reward model without base model and SAE, in float32, without its weights.

    From the average token to the reward, it runs the same code as `sparserm score`.
    """
    fields = config.to_dict() | {"slim": True, "sae": None}
    return TransformersRewardModel(SparseRMConfig.from_dict(fields)).float().eval()


class SparseRMForSequenceClassification(nn.Module):
    """A reward model for vLLM, which registers it by this name.

    Attributes:
        base: vLLM's model of the base model's architecture, cut after `config.layer` layers, without its final norm.
        head: Directions and head, see `head_from_config`.
        pooler: See `RewardPooler`.

    Args:
        vllm_config: vLLM's `VllmConfig`.
        prefix: Name of the model among vLLM's modules.
    """

    is_pooling_model = True
    # The files that vLLM loads. The controls and the drift reference have other names and are not loaded.
    allow_patterns_overrides = ("model*.safetensors",)

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        base_config = copy.deepcopy(config.base_config)
        base_config.tie_word_embeddings = True  # else vLLM makes an output layer, which our checkpoints lack
        self.base = init_vllm_registered_model(
            vllm_config,
            prefix=maybe_prefix(prefix, "base"),
            hf_config=base_config,
            architectures=[BASE_CLASSES[base_config.model_type]],
        )
        self.base.model.norm = ResidualSum()
        self.head = head_from_config(config)
        self.pooler = RewardPooler(self.head)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed the token ids of vLLM's batch."""
        return self.base.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the cut base model: (tokens,) ids and positions to the (tokens, d_model) residual stream."""
        return self.base.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the weights of a checkpoint, except the SAE's, which are not needed.

        Returns:
            Names of the loaded weights, as vLLM wants them.

        Raises:
            SparseRMError: The checkpoint lacks weights of the head, or has unknown weights.
        """
        own: dict[str, torch.Tensor] = {}

        def of_base() -> Iterator[tuple[str, torch.Tensor]]:
            for name, weight in weights:
                if name.startswith("model."):
                    yield name, weight
                elif not name.startswith("sae."):
                    own[name] = weight.clone()  # vLLM may reuse the memory

        loaded = {f"base.{name}" for name in self.base.load_weights(of_base())}
        if different := own.keys() ^ self.head.state_dict().keys():
            raise SparseRMError(
                f"The checkpoint lacks weights of its head, or has others, among them {min(different)!r}. "
                "Save or download it anew."
            )
        self.head.load_state_dict(own)
        return loaded | {f"head.{name}" for name in own}
