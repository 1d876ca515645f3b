"""Random SAEs in the formats of Gemma Scope, Llama Scope and Qwen Scope, with their references.

The references are sae-lens' own loaders, and the formulas by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sae_lens
import torch
from published_saes import HOOK, K, Published, Tensor, from_sae_lens, random_tensors, write_json
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file
from tiny import D_MODEL, D_SAE


def with_sae_lens_loader(loader: str, root: Path, repo: str, folder: str, **sizes) -> sae_lens.SAE:
    """Load local files with a loader of sae-lens, which expects them on the Hub."""

    def download(repo_id, filename, subfolder=None, **_):
        return str(root / (subfolder or "") / filename)

    def shapes(repo_id, filename):
        return {name: list(t.shape) for name, t in loaders.load_safetensors_weights(root / filename).items()}

    originals = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes
    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = download, shapes
    try:
        config, weights, _ = getattr(loaders, loader)(repo, folder, "cpu", False, {"dtype": "float32"} | sizes)
    finally:
        loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = originals
    config = loaders.handle_config_defaulting(config)
    sae = sae_lens.SAE.from_dict(config)
    sae.load_state_dict(weights, assign=True)
    return sae


TINY_SIZES = {"d_in": D_MODEL, "d_sae": D_SAE}
SCOPE = {"w_enc": (D_MODEL, D_SAE), "w_dec": (D_SAE, D_MODEL), "b_enc": (D_SAE,), "b_dec": (D_MODEL,)}


def jumprelu_by_hand(
    path: Path, w_enc: Tensor, w_dec: Tensor, b_enc: Tensor, b_dec: Tensor, theta: Tensor
) -> Published:
    def encode(x):
        h = x @ w_enc + b_enc
        return torch.where(h > theta, h, torch.zeros(()))

    return Published(path, encode, lambda x: encode(x) @ w_dec + b_dec, w_dec)


def write_gemma_scope(root: Path, repo: str = "google/gemma-scope-2b-pt-res", layer: int = 1) -> tuple[Path, dict]:
    folder = root / repo / f"layer_{layer}/width_16k/average_l0_71"
    folder.mkdir(parents=True)
    arrays = random_tensors(**SCOPE, threshold=(D_SAE,))
    names = {name: name.replace("w_", "W_") for name in arrays}
    np.savez(folder / "params.npz", **{names[name]: tensor.numpy() for name, tensor in arrays.items()})
    return folder, arrays


def gemma_scope(root: Path, by_hand: bool) -> Published:
    folder, t = write_gemma_scope(root)
    if by_hand:
        return jumprelu_by_hand(folder, t["w_enc"], t["w_dec"], t["b_enc"], t["b_dec"], t["threshold"])
    repo = "google/gemma-scope-2b-pt-res"
    inside = folder.relative_to(root / repo).as_posix()
    sae = with_sae_lens_loader("gemma_2_sae_huggingface_loader", root / repo, repo, inside, **TINY_SIZES)
    return from_sae_lens(folder, sae)


GEMMA_SCOPE_2 = {  # google/gemma-scope-2-4b-pt, resid_post/layer_17_width_16k_l0_big/config.json
    "width": D_SAE,
    "model_name": "google/gemma-3-4b-pt",
    "architecture": "jump_relu",
    "l0": 150,
    "affine_connection": False,
    "hf_hook_point_in": "model.layers.1.output",
    "hf_hook_point_out": "model.layers.1.output",
    "type": "sae",
}


def gemma_scope_2(root: Path, by_hand: bool) -> Published:
    folder = root / "resid_post/layer_1_width_16k_l0_big"
    write_json(folder / "config.json", GEMMA_SCOPE_2)
    t = random_tensors(**SCOPE, threshold=(D_SAE,))
    save_file(t, folder / "params.safetensors")
    if by_hand:
        return jumprelu_by_hand(folder, t["w_enc"], t["w_dec"], t["b_enc"], t["b_dec"], t["threshold"])
    inside = folder.relative_to(root).as_posix()
    return from_sae_lens(
        folder, with_sae_lens_loader("gemma_3_sae_huggingface_loader", root, "google/gemma-scope-2-4b-pt", inside)
    )


LLAMA_SCOPE = {  # fnlp/Llama3_1-8B-Base-LXR-8x, Llama3_1-8B-Base-L8R-8x/hyperparams.json
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": 2,
    "d_model": D_MODEL,
    "d_sae": D_SAE,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.2021484375,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 0.6, "out": 0.6},
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "top_k": 50,
}


def llama_scope(root: Path, by_hand: bool, unit_decoder: bool) -> Published:
    """sae-lens is right if the decoder's rows have norm 1; the formula by hand is that of the authors' library."""
    folder = root / "Llama3_1-8B-Base-L1R-8x"
    write_json(folder / "hyperparams.json", LLAMA_SCOPE)
    shapes = {"encoder.weight": (D_SAE, D_MODEL), "decoder.weight": (D_MODEL, D_SAE)}
    t = random_tensors(**shapes, **{"encoder.bias": (D_SAE,), "decoder.bias": (D_MODEL,)})
    norms = t["decoder.weight"].norm(dim=0)  # of the decoder's rows, here its columns
    if unit_decoder:
        t["decoder.weight"] /= norms
    (folder / "checkpoints").mkdir()
    save_file(t, folder / "checkpoints/final.safetensors")
    if not by_hand:
        loader = "llama_scope_sae_huggingface_loader"
        sae = with_sae_lens_loader(loader, root, "fnlp/Llama3_1-8B-Base-LXR-8x", folder.name)
        scale = D_MODEL**0.5 / 0.6
        sae.fold_activation_norm_scaling_factor(scale)
        return from_sae_lens(folder, sae)

    scale, theta = D_MODEL**0.5 / 0.6, 0.2021484375
    norms = t["decoder.weight"].norm(dim=0)

    def authors_acts(x):  # the bias is divided by the scale, encoder and bias multiplied by the decoder's norms
        h = x @ (t["encoder.weight"] * norms[:, None]).T + t["encoder.bias"] / scale * norms
        return torch.where(h > theta, h, torch.zeros(()))

    def reconstruct(x):
        return authors_acts(x) @ (t["decoder.weight"] / norms).T + t["decoder.bias"] / scale

    # The same latents fire and write the same; we count them in sae-lens' units.
    return Published(folder, lambda x: authors_acts(x) / norms * scale, reconstruct, t["decoder.weight"].T / scale)


QWEN_SCOPE = {  # Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50, config.json
    "model_type": "topk_sae",
    "base_model": "Qwen/Qwen3-1.7B-Base",
    "d_model": D_MODEL,
    "d_sae": D_SAE,
    "k": K,
    "num_layers": 28,
    "hook_point": "resid_post",
    "dtype": "float32",
}


def qwen_scope(root: Path, by_hand: bool) -> Published:
    repo = f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    write_json(root / repo / "config.json", QWEN_SCOPE)
    t = random_tensors(W_enc=(D_SAE, D_MODEL), W_dec=(D_MODEL, D_SAE), b_enc=(D_SAE,), b_dec=(D_MODEL,))
    file = root / repo / "layer1.sae.pt"
    torch.save(t, file)
    if not by_hand:
        sae = with_sae_lens_loader(
            "qwen_scope_sae_huggingface_loader", root / repo, f"Qwen/{repo}", file.name, **TINY_SIZES
        )
        return from_sae_lens(file, sae)

    def encode(x):
        h = x @ t["W_enc"].T + t["b_enc"]
        kth = h.topk(K, dim=-1).values[:, -1:]
        return torch.where(h >= kth, h, torch.zeros(())).clamp(min=0)

    return Published(file, encode, lambda x: encode(x) @ t["W_dec"].T + t["b_dec"], t["W_dec"].T)
