"""Interpretable reward models from sparse autoencoders, native to Hugging Face.

Importing the package registers the model with transformers' auto classes, so that checkpoints load without
`trust_remote_code`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .conversations.data_files import load_preferences
from .explanations.attribution import explain_text
from .integrations.drift_callback import DriftCallback
from .integrations.reward_function import SparseRMReward
from .modeling.configuration_sparserm import SparseRMConfig
from .modeling.modeling_sparserm import SparseRMForSequenceClassification
from .runtime.errors import SparseRMError
from .runtime.version import __version__
from .sae.loading.formats import LoadedSAE, load_sae
from .sae.loading.presets import PRESETS
from .training.config import SparseRMTrainingConfig
from .training.trainer import SparseRMTrainer

__all__ = [
    "PRESETS",
    "DriftCallback",
    "LoadedSAE",
    "SparseRMConfig",
    "SparseRMError",
    "SparseRMForSequenceClassification",
    "SparseRMReward",
    "SparseRMTrainer",
    "SparseRMTrainingConfig",
    "__version__",
    "explain_text",
    "load_preferences",
    "load_sae",
]

AutoConfig.register(SparseRMConfig.model_type, SparseRMConfig, exist_ok=True)
AutoModel.register(SparseRMConfig, SparseRMForSequenceClassification, exist_ok=True)
AutoModelForSequenceClassification.register(SparseRMConfig, SparseRMForSequenceClassification, exist_ok=True)
