"""The plugin by which vLLM serves reward models; vLLM loads it by its entry point, in each of its processes."""

from __future__ import annotations

ARCHITECTURE = "SparseRMForSequenceClassification"
MODE = "sparserm"  # name of the reward model's tokenisation, a `tokenizer_mode` of vLLM


def register() -> None:
    """Register the reward model, its configuration and its tokenisation with vLLM.

    vLLM calls this once in each process, before it reads a model's configuration. Only vLLM's own tables are changed.
    transformers' classes stay what they are, because a trainer may run vLLM in its own process.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from ..modeling.configuration_sparserm import SparseRMConfig  # this import registers it with transformers
    from .vllm_settings import RewardModelArchitecture, RewardModelSettings

    MODEL_ARCH_CONFIG_CONVERTORS[SparseRMConfig.model_type] = RewardModelArchitecture
    MODELS_CONFIG_MAP[ARCHITECTURE] = RewardModelSettings
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:{ARCHITECTURE}")
    if MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    if MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(MODE, f"{__package__}.vllm_renderer", "RewardRenderer")
