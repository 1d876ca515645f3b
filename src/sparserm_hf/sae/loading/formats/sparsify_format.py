"""The format of EleutherAI's sparsify."""

from __future__ import annotations

from pathlib import Path

from ..weight_files import UnusableSAEError, matrix, read_json, read_tensors
from .parsed_sae import ParsedSAE, module_hook


def parse_sparsify(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE of EleutherAI's sparsify.

    sae-lens' own reader of this format transposes W_dec, takes `num_latents: 0` and loses b_dec.
    """
    config = read_json(file.parent / "cfg.json")
    weights = read_tensors(file)
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in weights:
        raise UnusableSAEError("is a transcoder; SparseRM needs an SAE that reconstructs the residual stream.")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        kind = "signed top-k" if config.get("signed") else config["activation"]
        raise UnusableSAEError(f"has the activation {kind}, which cannot be embedded; only topk can.")
    run = file.parent.parent / "config.json"
    return ParsedSAE(
        "topk",
        {
            "W_enc": matrix(weights, "encoder.weight").T,
            "b_enc": weights["encoder.bias"],
            "W_dec": weights["W_dec"],
            "b_dec": weights["b_dec"],
        },
        config["d_in"],
        config.get("num_latents") or config["d_in"] * config["expansion_factor"],
        config["k"],
        apply_b_dec_to_input=True,
        source={
            "format": "sparsify",
            "hook_name": module_hook(where.rsplit("/", 1)[-1]),
            "model_name": read_json(run).get("model") if run.is_file() else None,
        },
    )
