"""Base models: from the Hub, a folder, or a GGUF file."""

from __future__ import annotations

import inspect
import logging
import sys
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .checkpoints import save_tokenizer
from .conversations.messages import shown
from .errors import SparseRMError, kind_and_reason, loading, reason
from .modeling.backbone_sparserm import (
    backbone_from_config,
    check_layer,
    cut_base_model,
    decoder_layers,
    decoder_of,
    residual_stream,
    use_exact_attention,
)
from .modeling.fields_sparserm import check_base_fields
from .modeling.quantized_sparserm import is_quantized, keep_packing
from .modeling.slim_sparserm import has_adapter, load_causal_lm
from .processes import process_state
from .quantization import quantized_loading
from .replacing import replacing_folder
from .representations import default_cache_dir

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
PROBE = 4  # tokens that a base model is tried with before it is cut


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
                path.parent, quantization_config=GgufConfig(dequantize=True), trust_remote_code=False, **kwargs
            )
        except ImportError:
            model = AutoModelForCausalLM.from_pretrained(path.parent, trust_remote_code=False, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except ImportError as error:
        raise SparseRMError(f"{path} is read with the package gguf: pip install gguf.") from error
    except Exception as error:  # whatever its reader does with a broken file
        raise SparseRMError(f"{path} cannot be read as a GGUF model: {kind_and_reason(error)}.") from error
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
    leaves in float32, and so the saved model would score otherwise than the one that was trained. A quantised model
    stays as it is.
    """
    if is_quantized(model):
        return model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def move(model: Model, device: torch.device) -> Model:
    """Move a model to a device, in place, if it is not there: transformers 4 refuses to move 8-bit weights at all."""
    there = torch.empty(0, device=device).device  # with a number where `device` has none
    if any(tensor.device != there for tensor in (*model.parameters(), *model.buffers())):
        model.to(device)  # type: ignore[arg-type]
    return model


def saved_dtype(model: PreTrainedModel, dtype: torch.dtype) -> torch.dtype:
    """Type of a base model's weights in a checkpoint, where it runs in `dtype`.

    They are saved as they run, but a 16-bit model that runs in float32 goes back to 16 bits without loss, and a
    quantised one stays as it was loaded.
    """
    as_loaded = is_quantized(model) or (dtype == torch.float32 and model.dtype.itemsize == 2)
    return model.dtype if as_loaded else dtype


def load_language_model(
    name: str, revision: str | None = None, quantization: str = "none", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a whole base model, its language modelling head included, in the type it was published in.

    Args:
        name: Hub id or folder.
        revision: On the Hub.
        quantization: How its weights are packed on loading: one of ``QUANTIZATIONS``.
        dtype: Type that it is loaded in where it is packed.

    Raises:
        SparseRMError: It cannot be found or loaded.
    """
    config = Path(name) / "config.json"
    if Path(name).exists() and not config.is_file():
        if (config.parent / "adapter_config.json").is_file():
            raise SparseRMError(
                f"{name!r} is an adapter: merge it into its base model, with peft's AutoPeftModelForCausalLM and "
                "merge_and_unload(), and save that."
            )
        raise SparseRMError(f"{name!r} is not a model folder: it has no config.json.")
    how = quantized_loading(quantization, dtype) or {"dtype": "auto"}
    with loading(f"The base model {name!r}"):
        check_base_fields(PretrainedConfig.get_config_dict(name, revision=revision)[0], "its configuration")
        return load_causal_lm(name, revision=revision, **how)


def load_base_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """Load the decoder of a base model; `load_language_model` says how."""
    return decoder_of(load_language_model(name, revision))


def longest_text(config: PretrainedConfig, max_length: int) -> int:
    """Most tokens of a text: `max_length`, or as many positions as the base model has."""
    return int(min(max_length, getattr(config, "max_position_embeddings", None) or sys.maxsize))


def prepare_base_model(
    model: PreTrainedModel, layer: int, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Cut a base model after `layer` layers, move it to its device and type, and freeze it; all in place.

    Raises:
        SparseRMError: It has no such layer, is of an unknown architecture, or carries an adapter.
    """
    if has_adapter(model):
        raise SparseRMError("The base model carries an adapter of PEFT: call merge_and_unload() first.")
    try:
        check_kind(decoder_of(keep_packing(model)))
        expected = stream_of_probe(decoder_of(model), layer)
        model = cut_base_model(model, layer)
    except ValueError as error:
        raise SparseRMError(str(error)) from error
    except Exception as error:  # whatever an architecture does when it is run or cut
        raise SparseRMError(f"{type(model).__name__} cannot be cut: {reason(error)}") from error
    check_backbone(model, expected)
    return cast_weights(move(model, device), dtype).eval().requires_grad_(False)


def check_kind(decoder: PreTrainedModel) -> None:
    """Refuse what is no causal language model.

    Raises:
        SparseRMError: It belongs to an encoder-decoder model, reads texts in both directions, or has no layers.
    """
    kind, fields = type(decoder).__name__, inspect.signature(type(decoder.config)).parameters
    if "is_encoder_decoder" in fields and fields["is_encoder_decoder"].default is True:
        raise SparseRMError(f"{kind} is half of an encoder-decoder model, but SparseRM reads causal language models.")
    try:
        decoder_layers(decoder)
    except ValueError:
        check_causal(decoder, run_probe(decoder))  # it says more
        raise


def check_causal(decoder: PreTrainedModel, stream: torch.Tensor) -> None:
    """Refuse a decoder, cut or not, whose tokens depend on later ones.

    Args:
        decoder: Cut or not.
        stream: What `run_probe` gave.

    Raises:
        SparseRMError: They do.
    """
    one, other = stream[0, :-1].float(), run_probe(decoder, last=PROBE)[0, :-1].float()
    apart = (one - other).norm(dim=-1) / one.norm(dim=-1)
    # With experts, and with weights in 8 bits, rounding depends on the other tokens.
    rounding = 2**-8 if is_quantized(decoder) else torch.finfo(decoder.dtype).eps
    if (apart > rounding**0.5).any():
        raise SparseRMError(
            f"{type(decoder).__name__} reads texts in both directions, as BERT does, but SparseRM reads causal "
            "language models: those in which no token depends on later ones."
        )


def stream_of_probe(decoder: PreTrainedModel, layer: int) -> torch.Tensor:
    """Run a few tokens through a whole decoder: the (1, T, d_model) residual stream after `layer` layers.

    Raises:
        ValueError: The layers are not found, or `layer` is out of range.
    """
    layers, seen = decoder_layers(use_exact_attention(decoder)), []
    check_layer(layer, len(layers))
    hook = layers[layer - 1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        run_probe(decoder)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"Layer {layer} of {type(decoder).__name__} is for images alone: take a layer beside it.")
    return seen[-1] if torch.is_tensor(seen[-1]) else seen[-1][0]


@torch.no_grad()
def run_probe(decoder: PreTrainedModel, last: int = PROBE - 1) -> torch.Tensor:
    """Run a few tokens through a decoder, the last of them given: what it puts out, (1, T, d_model)."""
    ids = torch.tensor([[*range(PROBE - 1), last]], device=decoder.device) % decoder.config.vocab_size
    return residual_stream(decoder.eval(), ids, torch.ones_like(ids))


def check_backbone(decoder: PreTrainedModel, expected: torch.Tensor) -> None:
    """Refuse a cut decoder whose output is something else than the residual stream, before anything is computed.

    Args:
        decoder: Cut.
        expected: What `stream_of_probe` gave before.

    Raises:
        SparseRMError: It is something else, or the decoder does not run.
    """
    kind = type(decoder).__name__
    try:
        stream = run_probe(decoder)
    except Exception as error:  # whatever an architecture does with fewer layers
        raise SparseRMError(f"{kind} does not run once it is cut: {reason(error)}") from error
    alike = stream.shape == expected.shape and torch.allclose(stream, expected, rtol=0, atol=0, equal_nan=True)
    if expected.ndim != 3:
        raise SparseRMError(f"{kind} has more than one residual stream a token, and an SAE reads one.")
    if not alike:
        raise SparseRMError(f"{kind} cannot be cut: its output is then not the residual stream of its last layer.")
    check_causal(decoder, stream)


def count_parameters(config: PretrainedConfig) -> int:
    """How many parameters a cut base model has; a packed weight counts for all the numbers that it was packed from."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in backbone_from_config(config).parameters())


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer.

    Raises:
        SparseRMError: It cannot be found or loaded.
    """
    with loading(f"The tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_tokenizer(tokenizer)
        return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError unless the fields of a tokenizer are of their kinds, which transformers does not check."""
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
        raise ValueError(f"its model_max_length is {shown(longest)}, but must be a number above 0")
    names = tokenizer.model_input_names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its model_input_names is {shown(names)}, but must be a list of strings")
    if not isinstance(tokenizer.chat_template, (str, dict, type(None))):
        raise ValueError(f"its chat_template is {shown(tokenizer.chat_template)}, but must be a string")
    _ = tokenizer.unk_token_id  # an unknown token that is itself unknown is looked up for ever
