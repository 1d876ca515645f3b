"""Random SAEs as sae-lens, sparsify and dictionary_learning save them, with references; helpers for all formats."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sae_lens
import torch
from safetensors.torch import load_file, save_file
from tiny import D_MODEL, D_SAE

from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.loaded_sae import load_sae

# dictionary_learning imports nnsight, which drives language models and pins old versions of half of everything.
sys.modules.setdefault("nnsight", ModuleType("nnsight")).LanguageModel = None  # type: ignore[attr-defined]
from dictionary_learning import dictionary  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402
from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402

Tensor = torch.Tensor
HOOK = "blocks.1.hook_resid_post"
K = 8


@dataclass
class Published:
    """An SAE on disk, with the results of its reference.

    Attributes:
        path: Folder or file to load.
        encode: Reference function from (N, d_in) inputs to (N, d_sae) activations.
        reconstruct: Reference function from (N, d_in) inputs to their reconstructions.
        directions: (d_sae, d_in) decoder rows of the reference.
    """

    path: Path
    encode: Callable[[Tensor], Tensor]
    reconstruct: Callable[[Tensor], Tensor]
    directions: Tensor


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Set random weights with which about half of the latents fire, and positive thresholds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if name == "threshold":
                parameter.abs_().mul_(10).add_(0.1)


def random_tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Make random tensors; tensors named threshold are positive."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else 1)
        for name, shape in shapes.items()
    }
    return {name: t.abs() * 10 + 0.1 if "threshold" in name else t for name, t in tensors.items()}


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def refused(path: Path | str, message: str) -> None:
    """Check that loading fails with one sentence, which matches the message."""
    with pytest.raises(SparseRMError, match=message) as error:
        load_sae(str(path))
    text = str(error.value)
    assert text.startswith(f"The SAE {str(path)!r} ") and "\n" not in text and "Traceback" not in text


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(file: Path, **changes) -> None:
    """Change tensors in a weights file; None removes a tensor."""
    read = {".safetensors": load_file, ".npz": lambda f: dict(np.load(f)), ".pt": torch.load}[file.suffix]
    tensors = {name: t for name, t in (read(file) | changes).items() if t is not None}
    if file.suffix == ".npz":
        np.savez(file, **{name: np.asarray(t) for name, t in tensors.items()})
    else:
        (torch.save if file.suffix == ".pt" else save_file)(tensors, file)


def from_sae_lens(path: Path, sae: sae_lens.SAE) -> Published:
    return Published(path, sae.encode, sae, sae.W_dec.data)


# --- sae-lens -------------------------------------------------------------------------------------------------------


def sae_lens_sae(folder: Path, class_name: str, **settings) -> Published:
    """Save an inference SAE of sae-lens."""
    config = getattr(sae_lens, f"{class_name}Config")(d_in=D_MODEL, d_sae=D_SAE, **settings)
    config.metadata.hook_name = HOOK
    config.metadata.neuronpedia_id = "tiny/1-res"
    sae = getattr(sae_lens, class_name)(config)
    randomize(sae)
    sae.save_model(folder)
    return from_sae_lens(folder, sae)


def sae_lens_trained(folder: Path, class_name: str, save: str, **settings) -> Published:
    """Save a training SAE of sae-lens, for inference or as a checkpoint; the reference is its inference form."""
    config = getattr(sae_lens, f"{class_name}Config")(d_in=D_MODEL, d_sae=D_SAE, **settings)
    config.metadata.hook_name = HOOK
    sae = getattr(sae_lens, class_name)(config)
    randomize(sae)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(4.0)
    sae.save_inference_model(folder / "inference")
    reference = sae_lens.SAE.load_from_disk(folder / "inference")
    getattr(sae, save)(folder / "saved")
    return from_sae_lens(folder / "saved", reference)


def sae_lens_old(folder: Path, class_name: str, **old) -> Published:
    """Write an SAE like sae-lens before version 6, which called a TopK SAE standard."""
    sae_lens_sae(folder, class_name, **({"k": K} if class_name == "TopKSAE" else {}))
    old = {"architecture": "standard", "d_in": D_MODEL, "d_sae": D_SAE, "hook_name": HOOK, "dtype": "float32"} | old
    old |= {"device": "cpu", "model_name": "tiny", "normalize_activations": "none", "apply_b_dec_to_input": True}
    write_json(folder / "cfg.json", old)
    return from_sae_lens(folder, sae_lens.SAE.load_from_disk(folder))


# --- EleutherAI sparsify --------------------------------------------------------------------------------------------


def sparsify(root: Path, **settings) -> Published:
    config = SparseCoderConfig(k=K, **settings)
    coder = SparseCoder(D_MODEL, config)
    randomize(coder)
    folder = root / "layers.1"
    coder.save_to_disk(folder)

    def encode(x):
        out = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter(-1, out.top_indices, out.top_acts)

    def reconstruct(x):  # not forward(x), which after training with multi_topk writes out 4 k latents
        out = coder.encode(x)
        return coder.decode(out.top_acts, out.top_indices)

    return Published(folder, encode, reconstruct, coder.W_dec.data)


# --- dictionary_learning --------------------------------------------------------------------------------------------

DICTIONARIES = {
    "AutoEncoder": lambda: dictionary.AutoEncoder(D_MODEL, D_SAE),
    "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D_MODEL, D_SAE),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D_MODEL, D_SAE, K),
    "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(D_MODEL, D_SAE),
    "BatchTopKSAE": lambda: BatchTopKSAE(D_MODEL, D_SAE, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D_MODEL, D_SAE, K, [D_SAE // 4, D_SAE - D_SAE // 4]),
}


def dictionary_learning(root: Path, dict_class: str) -> Published:
    """Save an SAE like `trainSAE` of dictionary_learning."""
    ae = DICTIONARIES[dict_class]()
    randomize(ae)
    if "threshold" in dict(ae.named_buffers()):
        ae.threshold.fill_(4.0)
    folder = root / "trainer_0"
    trainer = {"dict_class": dict_class, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 1, "lm_name": "tiny"}
    trainer |= {"submodule_name": "resid_post_layer_1"} | ({"k": K} if "k" in dict(ae.named_buffers()) else {})
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {"d_submodule": D_MODEL, "io": "out"}})
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, folder / "ae.pt")
    directions = ae.W_dec.data if hasattr(ae, "W_dec") else ae.decoder.weight.data.T
    return Published(folder, ae.encode, ae, directions)
