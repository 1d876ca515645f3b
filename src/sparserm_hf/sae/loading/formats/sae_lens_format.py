"""The format of sae-lens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ....modeling.autoencoder_sparserm import ARCHITECTURES
from ....runtime import current_sae_lens_config
from ..weight_files import UnusableSAEError, read_json, read_tensors
from .parsed_sae import ParsedSAE


def from_sae_lens(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> ParsedSAE:
    """Parse the configuration and the tensors of an SAE of sae-lens."""
    metadata = config.get("metadata") or {}
    architecture = config.get("architecture", "standard")
    rescale = config.get("rescale_acts_by_decoder_norm", False)
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        # A training checkpoint: `save_inference_model` would have saved it as a JumpReLU SAE, like this.
        weights = dict(weights)
        theta = weights.pop("topk_threshold")
        if rescale:
            norms = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)
            weights |= {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
            weights["W_dec"] = weights["W_dec"] / norms[:, None]
        weights["threshold"] = torch.full_like(weights["b_enc"], theta.item())
        architecture, rescale = "jumprelu", False
    if "log_threshold" in weights:  # an older training checkpoint
        weights = dict(weights)
        weights["threshold"] = weights.pop("log_threshold").float().exp()
    source = {"format": "sae-lens"} | {k: metadata.get(k) for k in ("hook_name", "model_name", "neuronpedia_id")}
    return ParsedSAE(
        architecture,
        weights,
        config["d_in"],
        config["d_sae"],
        k=config.get("k"),
        normalization=config.get("normalize_activations") or "none",
        apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
        rescale_acts_by_decoder_norm=rescale,
        centred=is_centred(metadata.get("model_from_pretrained_kwargs")),
        source=source,
    )


def is_centred(model_settings: dict[str, Any] | None) -> bool:
    """Tell if TransformerLens, loading a model with these settings, subtracts the mean of the residual stream."""
    return bool((model_settings or {}).get("center_writing_weights"))


def parse_sae_lens(file: Path, where: str) -> ParsedSAE:
    """Parse an SAE in sae-lens' format, of version 6 or earlier."""
    config = read_json(file.parent / "cfg.json")
    weights = read_tensors(file)
    known = config.get("architecture", "standard") in ARCHITECTURES
    if "metadata" not in config and known:  # written before version 6, with other names: sae-lens knows them all
        config = current_sae_lens_config(config)
        scaling = weights.pop("scaling_factor", None)
        if scaling is not None and not torch.allclose(scaling.float(), torch.ones(())):
            raise UnusableSAEError("was finetuned with a scaling factor: fold it into W_dec and save it again.")
    return from_sae_lens(config, weights)
