"""Interpretable reward models from sparse autoencoders, native to Hugging Face.

Importing the package makes transformers' auto classes load its checkpoints without `trust_remote_code`. The names
below are imported when they are first used.
"""

from types import ModuleType

import lazy_loader
from wrapt import when_imported

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


# The classes are registered as soon as transformers has loaded what registers them: they take seconds to import.
@when_imported("transformers.models.auto.configuration_auto")
def _register_config(auto: ModuleType) -> None:
    from .modeling.configuration_sparserm import SparseRMConfig

    auto.AutoConfig.register(SparseRMConfig.model_type, SparseRMConfig, exist_ok=True)


@when_imported("transformers.models.auto.modeling_auto")
def _register_model(auto: ModuleType) -> None:
    from .modeling.configuration_sparserm import SparseRMConfig
    from .modeling.modeling_sparserm import SparseRMForSequenceClassification

    for kind in (auto.AutoModel, auto.AutoModelForSequenceClassification):
        kind.register(SparseRMConfig, SparseRMForSequenceClassification, exist_ok=True)
