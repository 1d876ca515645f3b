"""One file for each format that SAEs are published in: it parses the format's files into a `ParsedSAE`.

To support another format, add a file with such a function, and name it in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .dictionary_learning_format import parse_dictionary_learning
from .gemma_scope import parse_gemma_scope, parse_gemma_scope_2
from .llama_scope import parse_llama_scope
from .parsed_sae import ParsedSAE
from .qwen_scope import parse_qwen_scope
from .sae_lens_format import from_sae_lens, is_centred, parse_sae_lens
from .sparsify_format import parse_sparsify

__all__ = ["CONFIGS", "FORMATS", "ParsedSAE", "from_sae_lens", "is_centred"]

CONFIGS = ("cfg.json", "config.json", "hyperparams.json")  # the files beside the weights

# By a pattern for the file that holds the weights: the function that parses the SAE.
FORMATS: dict[str, Callable[[Path, str], ParsedSAE]] = {
    "sae_weights.safetensors": parse_sae_lens,
    "sae.safetensors": parse_sparsify,
    "params.npz": parse_gemma_scope,
    "params.safetensors": parse_gemma_scope_2,
    "checkpoints/final.safetensors": parse_llama_scope,
    "layer*.sae.pt": parse_qwen_scope,
    "ae.pt": parse_dictionary_learning,
}
