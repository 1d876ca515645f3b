"""The formats of Gemma Scope 1 and 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..weight_files import UnusableSAEError, matrix, read_json, read_tensors
from .parsed_sae import ParsedSAE, module_hook


def parse_gemma_scope(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE of Gemma Scope (arXiv 2408.05147), whose files hold five arrays and nothing else."""
    arrays = read_tensors(file)
    weights = {name.replace("w_", "W_", 1): array for name, array in arrays.items()}
    release = re.search(r"gemma-scope-(\w+)-(pt|it)-(\w+)", where)
    layer = re.search(r"layer_(\d+)", where)
    source: dict[str, Any] = {"format": "gemma-scope"}
    if release:
        source["model_name"] = f"google/gemma-2-{release[1]}" + "-it" * (release[2] == "it")
    if release and layer:
        hook = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}.get(release[3])
        source["hook_name"] = f"blocks.{layer[1]}.{hook or release[3]}"
    elif release and "/embedding/" in where:
        source["hook_name"] = "hook_embed"
    d_in, d_sae = matrix(weights, "W_enc").shape
    return ParsedSAE("jumprelu", weights, d_in, d_sae, source=source)


def parse_gemma_scope_2(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE of Gemma Scope 2."""
    config = read_json(file.parent / "config.json")
    kind = config.get("type", "sae")
    hook = config["hf_hook_point_in"]
    if kind != "sae" or config.get("hf_hook_point_out", hook) != hook or config.get("affine_connection"):
        kind = "transcoder" if kind == "sae" else kind
        raise UnusableSAEError(f"is a {kind}; SparseRM needs an SAE that reconstructs the residual stream.")
    if config["architecture"] != "jump_relu":
        raise UnusableSAEError(f"is a {config['architecture']}, which no Gemma Scope 2 SAE is known to be.")
    weights = {name.replace("w_", "W_", 1): tensor for name, tensor in read_tensors(file).items()}
    output = re.fullmatch(r"(.+)\.output", hook)
    d_in, d_sae = matrix(weights, "W_enc").shape
    return ParsedSAE(
        "jumprelu",
        weights,
        d_in,
        d_sae,
        source={
            "format": "gemma-scope-2",
            "hook_name": (output and module_hook(output[1])) or hook,
            "model_name": config.get("model_name"),
        },
    )
