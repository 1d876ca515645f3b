"""Load the base model of a slim checkpoint by its name, and find out if it has changed before the model is saved."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbone_sparserm import KEPT, cut_base_model, decoder_of, prepare_backbone
from .configuration_sparserm import BEFORE_TRANSFORMERS_5, SparseRMConfig, legacy_rope_fields
from .quantized_sparserm import adopt_quantizer, is_quantized, keep_packing, plain_tensors, quantize_on_loading
from .weights_sparserm import WHERE, check_index

logger = logging.get_logger(__name__)

# Arguments that `from_pretrained` passes on to the base model of a slim checkpoint.
BASE_LOADING_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "force_download",
    "local_files_only",
    "max_memory",
    "proxies",
    "quantization_config",
    "token",
)

SAMPLE = 4096  # numbers of each weight that are kept for comparison


def sample(weight: torch.Tensor) -> torch.Tensor:
    """Copy some numbers of a weight, evenly spread, in its own data type."""
    flat = weight.detach().flatten()
    return flat[:: max(len(flat) // SAMPLE, 1)].cpu().clone()


def sample_weights(base_model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy some numbers of each weight of a base model; weights on the meta device have none."""
    state = plain_tensors(base_model.state_dict())
    return {name: sample(weight) for name, weight in state.items() if not weight.is_meta}


def changed_weight(samples: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str | None:
    """Find the name of a weight that has changed; None if no weight has. Another data type is not a change.

    Args:
        samples: Samples of the weights as they were loaded, see `sample_weights`.
        state: The present weights.
    """
    state = plain_tensors(state)
    for name in sorted(samples.keys() | state.keys()):
        if name not in samples or name not in state:
            return name
        if state[name].is_meta:
            continue
        now = sample(state[name])
        if now.shape != samples[name].shape or not torch.equal(now.float(), samples[name].to(now.dtype).float()):
            return name
    return None


def has_adapter(model: nn.Module) -> bool:
    """Tell if layers of a model carry a PEFT adapter that is not merged into their weights."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def head_weights(
    state: Mapping[str, torch.Tensor], samples: Mapping[str, torch.Tensor], config: SparseRMConfig
) -> dict[str, torch.Tensor] | None:
    """Remove the base model's weights from the state dict of a slim model, unless they have changed.

    Args:
        state: All weights, or only the weights of the head and the directions.
        samples: Samples of the base model's weights as they were loaded, see `sample_weights`.
        config: Configuration of the model.

    Returns:
        The remaining weights; None if the base model has changed, so that the checkpoint must hold it.

    Raises:
        ValueError: The base model has changed, and is quantised.
    """
    of_base = {name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.")}
    changed = changed_weight(samples, of_base) if of_base else None
    if changed is None:
        return {name: x for name, x in state.items() if not name.startswith("model.")}
    what = f"The base model is not {config.base_model_name_or_path!r} any more ({changed} has changed)"
    if hasattr(config.base_config, "quantization_config"):
        raise ValueError(f"{what}, and it is quantised: merge an adapter into the base model before it is quantised.")
    logger.warning(f"{what}: the checkpoint is saved with it, not slim.")
    return None


def load_config(name_or_path: str, kwargs: dict[str, Any]) -> PretrainedConfig:
    """Load the configuration of a base model.

    Args:
        name_or_path: Hub id or folder.
        kwargs: Arguments of `from_pretrained`; only the arguments in ``WHERE``, which locate the file, are used.
    """
    where = {name: value for name, value in kwargs.items() if name in WHERE}
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **where)
    if BEFORE_TRANSFORMERS_5:  # transformers 4 misreads a configuration that transformers 5 saved
        text = config.get_text_config()
        vars(text).update(legacy_rope_fields(text.to_dict()))
    return config


def load_causal_lm(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model, or a vision-language model, from safetensors only.

    Args:
        name_or_path: Hub id or folder.
        kwargs: Passed to `from_pretrained`.

    Raises:
        OSError: The model is missing, or its weights are only in a pickle.
        ValueError: Some of its weights are missing, or it is neither kind of model.
    """
    config = kwargs.get("config") or load_config(name_or_path, kwargs)
    check_index(name_or_path, kwargs)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("it is an encoder-decoder model, but SparseRM needs a causal language model.")
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        loader = transformers.AutoModelForCausalLM
    elif type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        loader = transformers.AutoModelForImageTextToText
    else:
        raise ValueError(f"models of the kind {config.model_type!r} are not causal language models.")
    # Never with code from the folder, about which transformers would otherwise ask on standard input.
    how = kwargs | {"config": config, "output_loading_info": True, "use_safetensors": True}
    model, info = loader.from_pretrained(name_or_path, trust_remote_code=False, **how)
    used = {decoder_of(model), model.get_output_embeddings()}  # without the vision encoder
    places = tuple(f"{name}." for name, module in model.named_modules() if module in used)
    if missing := sorted(key for key in info["missing_keys"] if key.startswith(places)):
        raise ValueError(
            f"The base model {name_or_path!r} lacks its weights {missing[0]!r}: download or save it again."
        )
    return keep_packing(model)


def load_cut_decoder(name_or_path: str, config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """Load only the layers of a base model that a cut configuration keeps.

    It does not use `AutoModel.from_pretrained`, because transformers 4 then finds no weights of Gemma 3, and only
    warns.

    Args:
        name_or_path: Hub id or folder of the whole base model.
        config: The cut configuration of the base model.
        kwargs: Arguments of `load_causal_lm`.

    Raises:
        OSError: See `load_causal_lm`.
        ValueError: See `load_causal_lm`.
    """
    config = copy.deepcopy(config)
    whole = load_config(name_or_path, kwargs)
    kwargs = quantize_on_loading(config, whole) | kwargs
    text = whole.get_text_config()
    if text is not whole:  # a vision-language model: the weights of its text side have other names
        name = next(name for name, value in vars(whole).items() if value is text)
        setattr(whole, name, config)
        config = whole
    elif hasattr(whole, "quantization_config") and BEFORE_TRANSFORMERS_5:
        # transformers 4 fails on packed weights whose layers are not built.
        layer = getattr(config, KEPT, config.num_hidden_layers)
        return cut_base_model(load_causal_lm(name_or_path, config=whole, **kwargs), layer).eval()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning about the unused layers, which are left out on purpose
    try:
        model = load_causal_lm(name_or_path, config=config, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    decoder = decoder_of(model)
    adopt_quantizer(decoder, model)
    return prepare_backbone(decoder).eval()


def load_base_of_slim(config: SparseRMConfig, arguments: dict[str, Any]) -> PreTrainedModel:
    """Load the base model of a slim checkpoint.

    Args:
        config: Configuration of the checkpoint.
        arguments: Arguments of the base model's `from_pretrained`, some of ``BASE_LOADING_ARGUMENTS``.

    Raises:
        OSError: The base model cannot be found.
    """
    name = config.base_model_name_or_path
    try:
        base_model = load_cut_decoder(name, config.base_config, revision=config.base_model_revision, **arguments)
    except OSError as error:
        raise OSError(
            f"This checkpoint is slim: it needs its base model {name!r} (revision "
            f"{config.base_model_revision or 'not pinned'}), which cannot be loaded. Give its present place by "
            "from_pretrained(..., base_model_name_or_path=...)."
        ) from error
    if is_quantized(base_model):  # perhaps by an argument; then a saved copy loads quantised too
        config.base_config.quantization_config = base_model.config.quantization_config
    return base_model
