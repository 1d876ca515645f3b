"""Load, save and freeze reward models; `modeling_sparserm.py` computes the rewards."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .backbone_sparserm import check_layers
from .configuration_sparserm import SparseRMConfig
from .head_sparserm import HEADS, further_heads
from .quantized_sparserm import adopt_quantizer, drop_quantizer, keep_packing
from .slim_sparserm import BASE_LOADING_ARGUMENTS, has_adapter, head_weights, load_base_of_slim, sample_weights
from .weights_sparserm import check_index, check_loaded, digest_of


class SparseRMPreTrainedModel(PreTrainedModel):
    """Base class of a reward model: a frozen base model `model` and a trainable head `score`.

    A checkpoint has one of two forms. A self-contained checkpoint holds the base model. A slim checkpoint loads the
    base model by its name.
    """

    config_class = SparseRMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _auto_class = "AutoModelForSequenceClassification"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["score"]  # noqa: RUF012

    def _attach(self, base_model: PreTrainedModel) -> None:
        self.model = base_model
        self.base_model_prefix = type(self).base_model_prefix
        # FSDP wraps each of these by itself, and refuses a name that is not in the model.
        heads = (HEADS[self.config.head_type], *further_heads(self.config))
        self._no_split_modules = [*(base_model._no_split_modules or []), *(head.__name__ for head in heads)]
        if self.config.slim:
            self._base_samples = sample_weights(base_model)
        else:
            adopt_quantizer(self, base_model)

    def is_custom_code(self) -> bool:
        """Return False: otherwise transformers 5 would not initialise the buffers that Falcon H1 does not save."""
        return False

    def freeze(self) -> None:
        """Make only the head trainable. `from_pretrained` makes everything trainable that it loads."""
        self.requires_grad_(False)
        self.score.requires_grad_(True)
        for heads in (self.score.objectives, self.score.ensemble, self.score.gate):
            if heads is not None:
                heads.requires_grad_(False)

    def train(self, mode: bool = True) -> "SparseRMPreTrainedModel":
        """Set the mode of the head; the base model always stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the base model's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the base model's token embedding."""
        self.model.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the checkpoint with its code.

        A slim model leaves the base model out, unless its base model has changed since it was loaded: then the
        checkpoint is self-contained, and the log says so.

        Raises:
            ValueError: The model carries an adapter, or it is slim and its quantised base model has changed.
        """
        if has_adapter(self) and not self._hf_peft_config_loaded:  # then transformers saves the adapter alone
            raise ValueError("The model carries an adapter: save the PeftModel, or call its merge_and_unload() first.")
        slim = self.config.slim
        if slim:
            state = kwargs.get("state_dict")
            head = head_weights(self.state_dict() if state is None else state, self._base_samples, self.config)
            self.config.slim = head is not None
            if head is not None:
                kwargs["state_dict"] = head
        state = kwargs.get("state_dict")
        self.config.weights_digest = digest_of(self.state_dict() if state is None else state)
        if self.config.base_config is not None:  # resizing the token embedding changes only `config`
            self.config.base_config.vocab_size = self.config.vocab_size
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.slim = slim

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, self-contained or slim, as any transformers model is loaded.

        Raises:
            ValueError: Weights are missing, surplus, not finite, or differ from the weights that were saved.
            OSError: The base model of a slim checkpoint cannot be found.
        """
        name = pretrained_model_name_or_path
        output_loading_info = kwargs.pop("output_loading_info", False)
        for_base = {name: kwargs[name] for name in BASE_LOADING_ARGUMENTS if name in kwargs}
        kwargs.setdefault("use_safetensors", True)  # never a pickle
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", "auto")  # the default of transformers 5, but not of transformers 4
        check_index(name, kwargs)
        model, info = super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)
        check_loaded(name, model, info)
        if model.config.slim:
            drop_quantizer(model)  # it belongs to the base model, which is loaded next
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            for_base["dtype"] = model.config.dtype if dtype in (None, "auto") else dtype
            model._attach(load_base_of_slim(model.config, for_base))
        check_layers(model.model, model.config.layer)
        model.freeze()
        keep_packing(model).eval()
        return (model, info) if output_loading_info else model
