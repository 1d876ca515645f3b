"""Interpretable reward models from sparse autoencoders, native to Hugging Face.

Importing the package makes transformers' auto classes load its checkpoints without `trust_remote_code`. The names
below are imported when they are first used.
"""

from importlib import import_module
from types import ModuleType

import lazy_loader
from wrapt import when_imported

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Our classes take seconds to import. They are registered as soon as any code imports transformers' auto classes. That
# code may be one of our own files; the classes are then registered when the file is complete.
_CONFIGURATION, _MODEL = (f"{__name__}.modeling.{file}_sparserm" for file in ("configuration", "modeling"))


@when_imported("transformers.models.auto.configuration_auto")
def _load_configuration(auto: ModuleType) -> None:
    import_module(_CONFIGURATION)


@when_imported("transformers.models.auto.modeling_auto")
def _load_model(auto: ModuleType) -> None:
    import_module(_MODEL)


@when_imported(_CONFIGURATION)
def _register_configuration(own: ModuleType) -> None:
    from transformers import AutoConfig

    AutoConfig.register(own.SparseRMConfig.model_type, own.SparseRMConfig, exist_ok=True)


@when_imported(_MODEL)
def _register_model(own: ModuleType) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification

    for auto in (AutoModel, AutoModelForSequenceClassification):
        auto.register(own.SparseRMConfig, own.SparseRMForSequenceClassification, exist_ok=True)
