"""The format of dictionary_learning."""

from __future__ import annotations

import re
from pathlib import Path

from ..weight_files import UnusableSAEError, matrix, read_json, read_tensors
from .parsed_sae import ParsedSAE

# By dictionary_learning's class: the architecture, and if the decoder bias is subtracted from the input.
_DICTIONARIES = {
    "AutoEncoder": ("standard", True),
    "GatedAutoEncoder": ("gated", True),
    "AutoEncoderTopK": ("topk", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
    "BatchTopKSAE": ("jumprelu", True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True),
}
_DICTIONARY_NAMES = {
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "encoder.bias": "b_enc",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}


def parse_dictionary_learning(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE of dictionary_learning, which folds the norm of the training data into the weights on saving."""
    config = read_json(file.parent / "config.json")
    trainer = config["trainer"]
    if trainer["dict_class"] not in _DICTIONARIES:
        raise UnusableSAEError(
            f"is a {trainer['dict_class']} of dictionary_learning; only {', '.join(_DICTIONARIES)} can be embedded."
        )
    if config.get("buffer", {}).get("io", "out") == "in_and_out":
        raise UnusableSAEError("is a transcoder; SparseRM needs an SAE that reconstructs the residual stream.")
    architecture, apply_b_dec_to_input = _DICTIONARIES[trainer["dict_class"]]
    tensors = read_tensors(file)
    k = tensors.pop("k", None)
    tensors.pop("group_sizes", None)  # of a Matryoshka SAE; all groups take part
    if architecture == "topk":
        tensors.pop("threshold", None)  # saved by the trainer, but used only on request
    weights = {_DICTIONARY_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    for ours, theirs in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
        if theirs in weights:
            weights[ours] = matrix(weights, theirs).T
            del weights[theirs]
    if architecture == "jumprelu" and weights["threshold"].ndim == 0:  # of a BatchTopK SAE
        weights["threshold"] = weights["threshold"].expand(trainer["dict_size"])
    return ParsedSAE(
        architecture,
        weights,
        trainer["activation_dim"],
        trainer["dict_size"],
        trainer.get("k") if k is None else int(k),
        apply_b_dec_to_input=apply_b_dec_to_input,
        source={
            "format": "dictionary-learning",
            "hook_name": _submodule_hook(trainer.get("submodule_name") or where),
            "model_name": trainer.get("lm_name"),
        },
    )


def _submodule_hook(name: str) -> str | None:
    """Name the hook at dictionary_learning's `resid_post_layer_<i>`, `mlp_out_layer_<i>` and the like."""
    match = re.search(r"(resid_pre|resid_post|mlp_out|attention_out|attn_out)_layer_(\d+)", name)
    return f"blocks.{match[2]}.hook_{match[1].replace('attention', 'attn')}" if match else None
