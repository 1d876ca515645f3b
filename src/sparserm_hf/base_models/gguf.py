"""GGUF files, which are unpacked into ordinary model folders."""

from __future__ import annotations

import logging
from hashlib import blake2b
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..runtime import (
    SparseRMError,
    default_cache_dir,
    kind_and_reason,
    process_state,
    replacing_folder,
    save_tokenizer,
)

logger = logging.getLogger(__name__)


def unpacked_folder(path: Path, cache_dir: Path) -> Path:
    """Name the folder that a GGUF file is unpacked into; its name changes with the file's path, size and time."""
    identity = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
    return cache_dir / "base_models" / f"{path.stem}-{blake2b(identity.encode(), digest_size=6).hexdigest()}"


def unpack_gguf(path: Path, cache_dir: Path) -> str:
    """Unpack a GGUF file into an ordinary model folder in the cache, in bfloat16, unless it is there already.

    Args:
        path: The GGUF file.
        cache_dir: Folder of the cache.

    Returns:
        The model folder.

    Raises:
        SparseRMError: The file is missing or broken, or the package `gguf` is not installed.
    """
    if not path.is_file():
        raise SparseRMError(f"There is no GGUF file {path}.")
    folder = unpacked_folder(path, cache_dir)
    if (folder / "config.json").is_file():
        return str(folder)
    logger.info("Unpacking %s into %s", path, folder)
    kwargs = {"gguf_file": path.name, "dtype": torch.bfloat16}
    try:
        try:  # transformers 5 keeps the weights packed by default; transformers 4 always unpacks them
            from transformers.utils.quantization_config import GgufConfig

            model = AutoModelForCausalLM.from_pretrained(
                path.parent, quantization_config=GgufConfig(dequantize=True), trust_remote_code=False, **kwargs
            )
        except ImportError:
            model = AutoModelForCausalLM.from_pretrained(path.parent, trust_remote_code=False, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except ImportError as error:
        raise SparseRMError(f"{path} needs the package gguf: pip install gguf.") from error
    except Exception as error:  # a broken file can make its reader raise anything
        raise SparseRMError(f"{path} cannot be read as a GGUF model: {kind_and_reason(error)}.") from error
    # The weights are unpacked, but still marked as quantised, so that saving would fail.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
    return str(folder)


def unpacked(name: str) -> str:
    """Return the name of a base model, after unpacking it if it is a GGUF file.

    Args:
        name: Hub id, folder or GGUF file. Of several processes, one unpacks the file.

    Returns:
        The Hub id or folder that transformers loads.

    Example:
        >>> unpacked("HuggingFaceTB/SmolLM2-135M-Instruct")
        'HuggingFaceTB/SmolLM2-135M-Instruct'
    """
    if not name.endswith(".gguf"):
        return name
    with process_state().main_process_first():
        return unpack_gguf(Path(name), default_cache_dir())
