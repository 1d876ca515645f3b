"""Base models of slim checkpoints: loaded by name, and saved only if they have changed."""

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

# What `from_pretrained` passes on to the base model of a slim checkpoint.
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

SAMPLE = 4096  # numbers of each weight that are remembered


def sample(weight: torch.Tensor) -> torch.Tensor:
    """Copy some numbers of a weight, evenly spread, in its own type."""
    flat = weight.detach().flatten()
    return flat[:: max(len(flat) // SAMPLE, 1)].cpu().clone()


def sample_weights(base_model: nn.Module) -> dict[str, torch.Tensor]:
    """Take some numbers of each of a base model's weights that are there; what lies on the meta device is not."""
    state = plain_tensors(base_model.state_dict())
    return {name: sample(weight) for name, weight in state.items() if not weight.is_meta}


def changed_weight(samples: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str | None:
    """Find a weight that has changed; None if none has. Another type is no change.

    Args:
        samples: What `sample_weights` took.
        state: The weights now.
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
    """Tell if layers of a model carry an adapter of PEFT that is not merged into their weights."""
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def head_weights(
    state: Mapping[str, torch.Tensor], samples: Mapping[str, torch.Tensor], config: SparseRMConfig
) -> dict[str, torch.Tensor] | None:
    """Take the base model's weights out of the state dict of a slim model.

    Args:
        state: All weights, or those of the head and the directions alone.
        samples: What `sample_weights` took of the base model when it was loaded.
        config: The model's.

    Returns:
        The other weights; None where the base model has changed, so that the checkpoint must hold it.

    Raises:
        ValueError: It has changed, and is quantised.
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
    """Load the configuration of a base model, and the arguments of `from_pretrained` that name its place."""
    where = {name: value for name, value in kwargs.items() if name in WHERE}
    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **where)
    if BEFORE_TRANSFORMERS_5:  # it would misread what transformers 5 has saved
        text = config.get_text_config()
        vars(text).update(legacy_rope_fields(text.to_dict()))
    return config


def load_causal_lm(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model, or a vision-language model, from safetensors only.

    Args:
        name_or_path: Hub id or folder.
        kwargs: Passed to `from_pretrained`.

    Raises:
        OSError: It is not there, or only as a pickle.
        ValueError: It lacks some of its weights, is of another kind, or its weights are not all beside it.
    """
    config = kwargs.get("config") or load_config(name_or_path, kwargs)
    check_index(name_or_path, kwargs)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("it is an encoder-decoder model, and SparseRM reads causal language models alone.")
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        loader = transformers.AutoModelForCausalLM
    elif type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        loader = transformers.AutoModelForImageTextToText
    else:
        raise ValueError(f"models of the kind {config.model_type!r} are no causal language models.")
    # Without the code that a folder may bring, and that transformers would else ask on standard input about.
    how = kwargs | {"config": config, "output_loading_info": True, "use_safetensors": True}
    model, info = loader.from_pretrained(name_or_path, trust_remote_code=False, **how)
    used = {decoder_of(model), model.get_output_embeddings()}  # not what sees
    places = tuple(f"{name}." for name, module in model.named_modules() if module in used)
    if missing := sorted(key for key in info["missing_keys"] if key.startswith(places)):
        raise ValueError(f"The base model {name_or_path!r} lacks its weights {missing[0]!r}.")
    return keep_packing(model)


def load_cut_decoder(name_or_path: str, config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """Load the layers of a base model that a cut configuration keeps, and no others.

    Not by `AutoModel.from_pretrained`: transformers 4 then finds none of a Gemma 3's weights and merely warns of it.

    Args:
        name_or_path: Hub id or folder of the whole base model.
        config: Its configuration, cut.
        kwargs: Passed to `load_causal_lm`, which says what is raised.
    """
    config = copy.deepcopy(config)
    whole = load_config(name_or_path, kwargs)
    kwargs = quantize_on_loading(config, whole) | kwargs
    text = whole.get_text_config()
    if text is not whole:  # a base model that sees too: its text side has another place among its weights
        name = next(name for name, value in vars(whole).items() if value is text)
        setattr(whole, name, config)
        config = whole
    elif hasattr(whole, "quantization_config") and BEFORE_TRANSFORMERS_5:
        # transformers 4 fails on packed weights of layers that are not built.
        layer = getattr(config, KEPT, config.num_hidden_layers)
        return cut_base_model(load_causal_lm(name_or_path, config=whole, **kwargs), layer).eval()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the layers further up go unused is meant
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
        config: The checkpoint's.
        arguments: For the base model's `from_pretrained`, some of ``BASE_LOADING_ARGUMENTS``.

    Raises:
        OSError: It cannot be found.
    """
    name = config.base_model_name_or_path
    try:
        base_model = load_cut_decoder(name, config.base_config, revision=config.base_model_revision, **arguments)
    except OSError as error:
        raise OSError(
            f"This checkpoint is slim: it needs its base model {name!r} (revision "
            f"{config.base_model_revision or 'not pinned'}), which cannot be loaded. Name where it is now with "
            "from_pretrained(..., base_model_name_or_path=...)."
        ) from error
    if is_quantized(base_model):  # perhaps by an argument: saved again, it loads so again
        config.base_config.quantization_config = base_model.config.quantization_config
    return base_model
