"""The format of Llama Scope."""

from __future__ import annotations

from pathlib import Path

import torch

from ..weight_files import UnusableSAEError, matrix, read_json, read_tensors
from .parsed_sae import ParsedSAE


def parse_llama_scope(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE of Llama Scope (arXiv 2410.20526).

    Its SAEs encode s x, where s = sqrt(d) / mean norm of the data, and decode to s times the reconstruction. As in
    sae-lens, activations are not divided by s: f = jumprelu(s x W_enc + b_enc). The threshold in the file holds for
    activations divided by s and decoder rows of norm 1. The published decoder rows have other norms, so the threshold
    of latent j becomes s * threshold / |d_j|. Source: `SparseAutoEncoder.from_config` of
    OpenMOSS/Language-Model-SAEs, November 2024; sae-lens leaves out the decoder's norm.
    """
    config = read_json(file.parent.parent / "hyperparams.json")
    hook = config["hook_point_in"]
    if config.get("hook_point_out", hook) != hook:
        raise UnusableSAEError("is a transcoder; SparseRM needs an SAE that reconstructs the residual stream.")
    if config["act_fn"] != "jumprelu" or config.get("use_glu_encoder"):
        kind = "glu" if config.get("use_glu_encoder") else config["act_fn"]
        raise UnusableSAEError(f"is a {kind} of Llama Scope; only jumprelu can be embedded.")
    if config["norm_activation"] not in ("dataset-wise", "inference"):
        raise UnusableSAEError(
            f"expects activations normalised {config['norm_activation']}, which cannot be folded in: take one with "
            "dataset-wise normalisation."
        )
    scale = 1.0
    if config["norm_activation"] == "dataset-wise":
        scale = config["d_model"] ** 0.5 / config["dataset_average_activation_norm"]["in"]
    # In float32: in the file's bfloat16 the threshold would be off by up to 0.4%.
    tensors = {name: tensor.float() for name, tensor in read_tensors(file).items()}
    decoder = matrix(tensors, "decoder.weight")
    threshold = torch.full_like(tensors["encoder.bias"], scale * config["jump_relu_threshold"])
    if config.get("sparsity_include_decoder_norm", True):
        threshold /= decoder.norm(dim=0)
    return ParsedSAE(
        "jumprelu",
        {
            "W_enc": matrix(tensors, "encoder.weight").T,
            "b_enc": tensors["encoder.bias"],
            "W_dec": decoder.T,
            "b_dec": tensors["decoder.bias"],
            "threshold": threshold,
        },
        config["d_model"],
        config["d_sae"],
        input_scale=scale,
        apply_b_dec_to_input=config.get("apply_decoder_bias_to_pre_encoder", False),
        source={
            "format": "llama-scope",
            "hook_name": hook,
            "model_name": "meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base" in where else None,
        },
    )
