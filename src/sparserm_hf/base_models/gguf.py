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
