"""Interpretable reward models from sparse autoencoders, native to Hugging Face."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .modeling.configuration_sparserm import SparseRMConfig
from .modeling.modeling_sparserm import SparseRMForSequenceClassification

AutoConfig.register("sparserm", SparseRMConfig, exist_ok=True)
AutoModel.register(SparseRMConfig, SparseRMForSequenceClassification, exist_ok=True)
AutoModelForSequenceClassification.register(SparseRMConfig, SparseRMForSequenceClassification, exist_ok=True)
