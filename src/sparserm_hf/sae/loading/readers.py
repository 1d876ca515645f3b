"""One reader for each format that SAEs are published in, and the common form that they read it into."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...modeling.autoencoder_sparserm import ARCHITECTURES
from .sae_files import UnusableSAEError, matrix, read_json, read_tensors

CONFIGS = ("cfg.json", "config.json", "hyperparams.json")  # the files beside the weights


@dataclass(frozen=True)
class Reading:
    """What the files of an SAE say, in the terms of `SparseAutoencoder`.

    Attributes:
        architecture: As the files have it; whether it can be embedded is not decided here.
        weights: The tensors under the names and in the shapes that `SparseAutoencoder` gives them.
        d_in: Width of the residual stream.
        d_sae: Number of latents.
        k: Latents that may fire on one token, where the architecture is `topk`.
        normalization: How an input is normalised before it is encoded.
        input_scale: What an input is multiplied by before that, and a reconstruction divided by.
        apply_b_dec_to_input: Whether the decoder bias is taken off the input before it is encoded.
        rescale_acts_by_decoder_norm: Whether the latents compete by the norm of what they write.
        centred: Whether it was trained on the residual stream less its mean, as TransformerLens can have it.
        source: Provenance: format, hook_name, model_name and what else is known.
    """

    architecture: str
    weights: dict[str, torch.Tensor]
    d_in: int
    d_sae: int
    k: int | None = None
    normalization: str = "none"
    input_scale: float = 1.0
    apply_b_dec_to_input: bool = False
    rescale_acts_by_decoder_norm: bool = False
    centred: bool = False
    source: dict[str, Any] = field(default_factory=dict)


def from_sae_lens(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Reading:
    """From the configuration and tensors of sae-lens."""
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
    return Reading(
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
    """Whether TransformerLens takes the mean off the residual stream of a model that it loads with these settings."""
    return bool((model_settings or {}).get("center_writing_weights"))


def _sae_lens(file: Path, where: str) -> Reading:
    config = read_json(file.parent / "cfg.json")
    weights = read_tensors(file)
    known = config.get("architecture", "standard") in ARCHITECTURES
    if "metadata" not in config and known:  # written before version 6, with other names: sae-lens knows them all
        from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting  # seconds to import

        config = handle_config_defaulting(config)
        scaling = weights.pop("scaling_factor", None)
        if scaling is not None and not torch.allclose(scaling.float(), torch.ones(())):
            raise UnusableSAEError("was finetuned with a scaling factor: fold it into W_dec and save it again.")
    return from_sae_lens(config, weights)


def _sparsify(file: Path, where: str) -> Reading:
    """EleutherAI sparsify; sae-lens' reader of it transposes W_dec, takes `num_latents: 0` and loses b_dec."""
    config = read_json(file.parent / "cfg.json")
    weights = read_tensors(file)
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in weights:
        raise UnusableSAEError("is a transcoder; SparseRM needs an SAE that reconstructs the residual stream.")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        kind = "signed top-k" if config.get("signed") else config["activation"]
        raise UnusableSAEError(f"has the activation {kind}, which cannot be embedded; only topk can.")
    run = file.parent.parent / "config.json"
    return Reading(
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
            "hook_name": _module_hook(where.rsplit("/", 1)[-1]),
            "model_name": read_json(run).get("model") if run.is_file() else None,
        },
    )


def _module_hook(module: str) -> str | None:
    """The hook at the output of a module of a transformers model: `layers.5` or `model.layers.5.mlp`."""
    match = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.+))?", module)
    if not match:
        return None
    return f"blocks.{match[1]}.{match[2] or 'hook_resid_post'}"


def _gemma_scope(file: Path, where: str) -> Reading:
    """Gemma Scope, arXiv 2408.05147; its files hold five arrays and nothing else."""
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
    return Reading("jumprelu", weights, d_in, d_sae, source=source)


def _gemma_scope_2(file: Path, where: str) -> Reading:
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
    return Reading(
        "jumprelu",
        weights,
        d_in,
        d_sae,
        source={
            "format": "gemma-scope-2",
            "hook_name": (output and _module_hook(output[1])) or hook,
            "model_name": config.get("model_name"),
        },
    )


def _llama_scope(file: Path, where: str) -> Reading:
    """Llama Scope, arXiv 2410.20526.

    Its SAEs read s x, where s = sqrt(d) / mean norm of the data, and write s times what they reconstruct. Activations
    are kept as they are, f = jumprelu(s x W_enc + b_enc), as sae-lens keeps them. The threshold in the file is meant
    for activations divided by s, of latents whose decoder rows have norm 1, which the published ones have not: it is
    s * threshold / |d_j|. Source: `SparseAutoEncoder.from_config` of OpenMOSS/Language-Model-SAEs, November 2024;
    sae-lens leaves out the decoder's norm.
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
    return Reading(
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


def _qwen_scope(file: Path, where: str) -> Reading:
    """Qwen Scope: one file a layer, one configuration for all."""
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
    return Reading(
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


# dictionary_learning's class: architecture here, whether it takes the decoder bias off its input.
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


def _dictionary_learning(file: Path, where: str) -> Reading:
    """dictionary_learning, which folds the norm of its training data in when it saves."""
    config = read_json(file.parent / "config.json")
    trainer = config["trainer"]
    if trainer["dict_class"] not in _DICTIONARIES:
        raise UnusableSAEError(
            f"is a {trainer['dict_class']} of dictionary_learning; those that can be embedded are "
            f"{', '.join(_DICTIONARIES)}."
        )
    if config.get("buffer", {}).get("io", "out") == "in_and_out":
        raise UnusableSAEError("is a transcoder; SparseRM needs an SAE that reconstructs the residual stream.")
    architecture, apply_b_dec_to_input = _DICTIONARIES[trainer["dict_class"]]
    tensors = read_tensors(file)
    k = tensors.pop("k", None)
    tensors.pop("group_sizes", None)  # of a Matryoshka SAE; all groups take part
    if architecture == "topk":
        tensors.pop("threshold", None)  # kept by its trainer, used only where asked for
    weights = {_DICTIONARY_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    for ours, theirs in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
        if theirs in weights:
            weights[ours] = matrix(weights, theirs).T
            del weights[theirs]
    if architecture == "jumprelu" and weights["threshold"].ndim == 0:  # of a BatchTopK SAE
        weights["threshold"] = weights["threshold"].expand(trainer["dict_size"])
    return Reading(
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
    """The hook at dictionary_learning's `resid_post_layer_<i>`, `mlp_out_layer_<i>` or `attention_out_layer_<i>`."""
    match = re.search(r"(resid_pre|resid_post|mlp_out|attention_out|attn_out)_layer_(\d+)", name)
    return f"blocks.{match[2]}.hook_{match[1].replace('attention', 'attn')}" if match else None


# The file that holds the weights, as a pattern, and the reader of its format.
READERS: dict[str, Callable[[Path, str], Reading]] = {
    "sae_weights.safetensors": _sae_lens,
    "sae.safetensors": _sparsify,
    "params.npz": _gemma_scope,
    "params.safetensors": _gemma_scope_2,
    "checkpoints/final.safetensors": _llama_scope,
    "layer*.sae.pt": _qwen_scope,
    "ae.pt": _dictionary_learning,
}
