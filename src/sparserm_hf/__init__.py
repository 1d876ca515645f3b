"""Interpretable reward models from sparse autoencoders, native to Hugging Face.

Importing the package registers the model with transformers' auto classes, so that checkpoints load without
`trust_remote_code`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .conversations.files import load_preferences
from .errors import SparseRMError
from .explain.attribution import explain_text
from .integrations.drift_callback import DriftCallback
from .integrations.reward_function import SparseRMReward
from .modeling.configuration_sparserm import SparseRMConfig
from .modeling.modeling_sparserm import SparseRMForSequenceClassification
from .sae.formats import LoadedSAE, load_sae
from .sae.presets import PRESETS
from .trainer import SparseRMTrainer
from .training_config import SparseRMTrainingConfig
from .version import __version__

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
