"""The format of Qwen Scope."""

from __future__ import annotations

import re
from pathlib import Path

from ..weight_files import UnusableSAEError, matrix, read_json, read_tensors
from .parsed_sae import ParsedSAE


def parse_qwen_scope(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE of Qwen Scope, which has one file a layer and one configuration for all layers."""
    path = file.parent / "config.json"
    config = read_json(path) if path.is_file() else {}
    named = re.search(r"L0_(\d+)", where)
    k = config.get("k", int(named[1]) if named else None)
    layer = re.fullmatch(r"layer(\d+)\.sae\.pt", file.name)
    tensors = read_tensors(file)
    weights = tensors | {"W_enc": matrix(tensors, "W_enc").T, "W_dec": matrix(tensors, "W_dec").T}
    hook = f"hook_{config.get('hook_point', 'resid_post')}"
    if k is None:
        raise UnusableSAEError("does not say its k: put the config.json of its repository beside it.")
    return ParsedSAE(
        "topk",
        weights,
        config.get("d_model", weights["W_enc"].shape[0]),
        config.get("d_sae", weights["W_enc"].shape[1]),
        k,
        source={
            "format": "qwen-scope",
            "hook_name": f"blocks.{layer[1]}.{hook}" if layer else None,
            "model_name": config.get("base_model"),
        },
    )
