"""Base models: from the Hub, a folder, or a GGUF file."""

from __future__ import annotations

import logging
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .checkpoints import replacing_folder, save_tokenizer
from .errors import SparseRMError, reason
from .modeling.backbone_sparserm import cut_base_model, decoder_of, load_causal_lm
from .processes import process_state
from .representations import default_cache_dir

logger = logging.getLogger(__name__)


def unpacked_folder(path: Path, cache_dir: Path) -> Path:
    """Where a GGUF file is unpacked: another file, or the same one written anew, has another place."""
    identity = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
    return cache_dir / "base_models" / f"{path.stem}-{blake2b(identity.encode(), digest_size=6).hexdigest()}"


def materialise_gguf(path: Path, cache_dir: Path) -> str:
    """Unpack a GGUF file, once, into an ordinary model folder in the cache, in bfloat16.

    Args:
        path: The GGUF file.
        cache_dir: The folder is made here.

    Returns:
        The folder.

    Raises:
        SparseRMError: The file is missing, or the package `gguf` is.
    """
    if not path.is_file():
        raise SparseRMError(f"There is no GGUF file {path}.")
    folder = unpacked_folder(path, cache_dir)
    if (folder / "config.json").is_file():
        return str(folder)
    logger.info("Unpacking %s into %s", path, folder)
    kwargs = {"gguf_file": path.name, "dtype": torch.bfloat16}
    try:
        try:  # transformers 5 keeps the weights packed unless told otherwise; transformers 4 knows no other way
            from transformers.utils.quantization_config import GgufConfig

            model = AutoModelForCausalLM.from_pretrained(
                path.parent, quantization_config=GgufConfig(dequantize=True), **kwargs
            )
        except ImportError:
            model = AutoModelForCausalLM.from_pretrained(path.parent, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise SparseRMError(f"{path} is read with the package gguf: pip install gguf.") from error
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SparseRMError(f"{path} cannot be read as a GGUF model: {error}") from error
    # Unpacked by now, but still marked as quantised, which saving would refuse.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
    return str(folder)


def unpacked(name: str) -> str:
    """The name of a base model; of a GGUF file, that of the folder it is unpacked into, by one process for all."""
    if not name.endswith(".gguf"):
        return name
    with process_state().main_process_first():
        return materialise_gguf(Path(name), default_cache_dir())


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model's parameters, in place.

    Not `model.to(dtype)`: that rounds the frequencies of the rotary embedding too, which `from_pretrained(dtype=...)`
    leaves in float32, and so the saved model would score otherwise than the one that was trained.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load_language_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """Load a whole base model, its language modelling head included, in the type it was published in.

    Raises:
        SparseRMError: It cannot be found or loaded.
    """
    config = Path(name) / "config.json"
    if Path(name).exists() and not config.is_file():
        raise SparseRMError(f"{name!r} is not a model folder: it has no config.json.")
    try:
        return load_causal_lm(name, revision=revision, dtype="auto")
    except (OSError, ValueError, SafetensorError) as error:
        raise SparseRMError(f"The base model {name!r} cannot be loaded: {reason(error)}") from error


def load_base_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """Load the decoder of a base model; `load_language_model` says how."""
    return decoder_of(load_language_model(name, revision))


def longest_text(config: PretrainedConfig, max_length: int) -> int:
    """Most tokens of a text: `max_length`, or as many positions as the base model has."""
    return min(max_length, getattr(config, "max_position_embeddings", None) or max_length)


def prepare_base_model(
    model: PreTrainedModel, layer: int, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Cut a base model after `layer` layers, move it to its device and type, and freeze it; all in place.

    Raises:
        SparseRMError: It has no such layer, is of an unknown architecture, or quantised.
    """
    if getattr(model.config, "quantization_config", None):
        raise SparseRMError(
            f"The weights of {model.config._name_or_path or 'this base model'} are quantised, and the residual stream "
            "is read from unquantised ones: name the model that it was made from."
        )
    try:
        model = cut_base_model(model, layer)
    except ValueError as error:
        raise SparseRMError(str(error)) from error
    model.to(device)  # type: ignore[arg-type]
    return cast_weights(model, dtype).eval().requires_grad_(False)


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer.

    Raises:
        SparseRMError: It cannot be found or loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise SparseRMError(f"The tokenizer of {name!r} cannot be loaded: {reason(error)}") from error
