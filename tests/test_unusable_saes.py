"""Broken, dangerous and unsupported SAEs: each is refused with one sentence, and no code in them runs."""

import json
import pickle
import re

import numpy as np
import published_saes as published
import published_scopes as scopes
import pytest
import torch
from published_saes import edit, refused, rewrite
from safetensors.torch import load_file
from tiny import D_SAE

from sparserm_hf.sae.loading.loaded_sae import load_sae

WRITERS = {
    "sae_weights.safetensors": lambda path: published.sae_lens_sae(path, "JumpReLUSAE"),
    "sae.safetensors": lambda path: published.sparsify(path, expansion_factor=2),
    "params.npz": lambda path: scopes.gemma_scope(path, by_hand=True),
    "params.safetensors": lambda path: scopes.gemma_scope_2(path, by_hand=True),
    "checkpoints/final.safetensors": lambda path: scopes.llama_scope(path, by_hand=True, unit_decoder=False),
    "layer1.sae.pt": lambda path: scopes.qwen_scope(path, by_hand=True),
    "ae.pt": lambda path: published.dictionary_learning(path, "AutoEncoder"),
}


@pytest.fixture(params=WRITERS)
def any_format(request, tmp_path):
    """Write an SAE in each format, and return its weights file."""
    path = WRITERS[request.param](tmp_path).path
    return path if path.is_file() else path / request.param


@pytest.mark.parametrize("kept", [0, 20, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept, any_format):
    content = any_format.read_bytes()
    any_format.write_bytes(content[: kept if kept >= 1 else int(len(content) * kept)])
    refused(any_format, f"is broken: {re.escape(any_format.name)} cannot be read .*: it was cut short or ch|holds som")


def test_a_file_of_something_else_is_refused(any_format):
    any_format.write_bytes(b"<!DOCTYPE html><html>" * 50)
    refused(any_format, "is broken: .* cannot be read|holds something else than named tensors")


def test_a_matrix_of_the_wrong_shape_is_refused(any_format):
    read = {".safetensors": load_file, ".npz": lambda f: dict(np.load(f)), ".pt": torch.load}[any_format.suffix]
    for name, tensor in read(any_format).items():
        if tensor.ndim == 2:
            original = any_format.read_bytes()
            rewrite(any_format, **{name: tensor[:-1]})
            refused(any_format, "is broken: .* has the shape")
            rewrite(
                any_format,
                **{name: tensor[:, :-1].copy() if isinstance(tensor, np.ndarray) else tensor[:, :-1].clone()},
            )
            refused(any_format, "is broken: ")
            rewrite(any_format, **{name: tensor[0]})
            refused(any_format, "is broken: ")
            rewrite(any_format, **{name: None})
            refused(any_format, "is broken: ")
            any_format.write_bytes(original)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value, any_format):
    read = {".safetensors": load_file, ".npz": lambda f: dict(np.load(f)), ".pt": torch.load}[any_format.suffix]
    for name, tensor in read(any_format).items():
        if tensor.ndim == 2:
            tensor = torch.as_tensor(tensor).clone()
            tensor[3, 3] = value
            rewrite(any_format, **{name: tensor})
    refused(any_format, "is broken: W_.* holds numbers that are not finite")


def test_a_configuration_that_cannot_be_understood_is_refused(any_format):
    for name in ("cfg.json", "config.json", "../hyperparams.json"):
        config = any_format.parent / name
        if config.is_file():
            config.write_text("[1, 2]")
            refused(any_format, "is broken: .* holds no JSON object")
            config.write_text('{"d_in":')
            refused(any_format, "is broken: .* is not JSON")
            config.write_text('{"d_in": "wide", "d_sae": [], "trainer": 3, "k": 8, "num_latents": 64}')
            refused(any_format, "is broken: ")


class Malicious:
    """An object that runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Malicious, "ran", True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sae = published.dictionary_learning(tmp_path, "AutoEncoder")
    file = sae.path / "ae.pt"
    tensors = torch.load(file, weights_only=True)
    safe = "ae.pt holds something else than named tensors.*save its state_dict.. alone"
    torch.save(tensors | {"bias": Malicious()}, file)
    refused(sae.path, safe)
    file.write_bytes(pickle.dumps(Malicious()))
    refused(sae.path, safe)
    torch.save(published.DICTIONARIES["AutoEncoder"](), file)  # a whole module
    refused(sae.path, safe)
    torch.save([tensors], file)
    refused(sae.path, safe)
    torch.save({"state_dict": tensors}, file)
    refused(sae.path, safe)
    for name in ("sae.pkl", "sae.pth", "sae.bin"):
        other = tmp_path / "pickled" / name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(pickle.dumps(Malicious()))
        refused(other, f"is refused: {name} is pickled.*save its tensors with safetensors.torch.save_file")
    refused(other.parent, "is refused: sae.bin, sae.pkl, sae.pth is pickled")
    folder, _ = scopes.write_gemma_scope(tmp_path)
    np.savez(folder / "params.npz", W_enc=np.array([Malicious()], dtype=object))
    refused(folder, "params.npz holds something else than named tensors")
    (folder / "params.npz").write_bytes(pickle.dumps(Malicious()))
    refused(folder, r"params.npz cannot be read \(it is not a zip archive\)")
    assert not Malicious.ran


def test_a_folder_without_an_sae_is_refused(tmp_path):
    refused(tmp_path, "must hold one of the files sae_weights.safetensors, .*, but holds nothing")
    (tmp_path / "README.md").write_text("")
    refused(tmp_path, "but holds README.md")
    refused(tmp_path / "README.md", "must hold one of the files")
    published.sae_lens_sae(tmp_path, "StandardSAE")
    (tmp_path / "cfg.json").unlink()
    refused(tmp_path, "is incomplete: cfg.json must stand beside its weights")


def test_a_folder_with_several_saes_says_which(tmp_path):
    for layer in ("layer_1", "layer_2"):
        published.sae_lens_sae(tmp_path / "saes" / layer, "StandardSAE")
    refused(tmp_path, "holds several SAEs, name one of them: saes/layer_1, saes/layer_2.")
    qwen = scopes.qwen_scope(tmp_path, by_hand=True).path
    (qwen.parent / "layer2.sae.pt").write_bytes(qwen.read_bytes())
    refused(qwen.parent, "holds several SAEs, name one of them: layer1.sae.pt, layer2.sae.pt.")


@pytest.mark.parametrize(
    ("writer", "config", "changes", "message"),
    [
        ("sae_weights.safetensors", "cfg.json", {"architecture": "transcoder"}, "is a transcoder; only standard"),
        ("sae_weights.safetensors", "cfg.json", {"architecture": "temporal"}, "is a temporal; only standard"),
        ("sae_weights.safetensors", "cfg.json", {"normalize_activations": "covariance_whitening"}, "fold it into"),
        ("sae_weights.safetensors", "cfg.json", {"architecture": "topk", "k": None}, "its k is None, but must be a w"),
        (
            "sae_weights.safetensors",
            "cfg.json",
            {"d_sae": 63},
            r"W_enc of a jumprelu SAE with d_in 32 and d_sae 63 has the shape \[32, 64\], not",
        ),
        ("sae.safetensors", "cfg.json", {"transcode": True}, "is a transcoder; SparseRM needs"),
        ("sae.safetensors", "cfg.json", {"skip_connection": True}, "is a transcoder; SparseRM needs"),
        ("sae.safetensors", "cfg.json", {"activation": "groupmax"}, "has the activation groupmax"),
        ("sae.safetensors", "cfg.json", {"signed": True}, "has the activation signed top-k"),
        ("sae.safetensors", "cfg.json", {"k": 0}, "needs k between 1 and 64, but k is 0"),
        ("sae.safetensors", "cfg.json", {"k": 4.5}, "its k is 4.5, but must be a whole number"),
        ("params.safetensors", "config.json", {"type": "crosscoder"}, "is a crosscoder; SparseRM needs"),
        ("params.safetensors", "config.json", {"hf_hook_point_out": "x"}, "is a transcoder; SparseRM needs"),
        ("params.safetensors", "config.json", {"affine_connection": True}, "is a transcoder; SparseRM needs"),
        ("params.safetensors", "config.json", {"architecture": "topk"}, "is a topk, which no Gemma Scope 2 SAE"),
        ("checkpoints/final.safetensors", "hyperparams.json", {"hook_point_out": "x"}, "is a transcoder; SparseRM"),
        ("checkpoints/final.safetensors", "hyperparams.json", {"act_fn": "topk"}, "is a topk of Llama Scope"),
        ("checkpoints/final.safetensors", "hyperparams.json", {"use_glu_encoder": True}, "is a glu of Llama Scope"),
        ("checkpoints/final.safetensors", "hyperparams.json", {"norm_activation": "token-wise"}, "normalised token-w"),
        ("ae.pt", "config.json", {"trainer": {"dict_class": "CrossCoder"}}, "is a CrossCoder of dictionary_learning"),
        ("ae.pt", "config.json", {"buffer": {"io": "in_and_out"}}, "is a transcoder; SparseRM needs"),
    ],
)
def test_what_cannot_be_embedded_is_refused(writer, config, changes, message, tmp_path):
    path = WRITERS[writer](tmp_path).path
    edit(path / config, **changes)
    refused(path, message)


def test_an_unknown_architecture_of_an_older_sae_lens_is_refused(tmp_path):
    sae = published.sae_lens_old(tmp_path, "StandardSAE", activation_fn_str="relu")
    edit(sae.path / "cfg.json", architecture="hourglass")
    refused(sae.path, "is a hourglass; only .* can be embedded")


def test_a_missing_k_is_refused(tmp_path):
    sae = published.sparsify(tmp_path, expansion_factor=2)
    config = json.loads((sae.path / "cfg.json").read_text())
    del config["k"]
    (sae.path / "cfg.json").write_text(json.dumps(config))
    refused(sae.path, "is broken: its files do not say 'k'")


def test_thresholds_that_were_rounded_to_zero_are_refused(tmp_path, caplog):
    """Without thresholds, the SAE would silently be a plain ReLU SAE; without some, some latents fire too easily."""
    sae = published.sae_lens_sae(tmp_path, "JumpReLUSAE")
    file = tmp_path / "sae_weights.safetensors"
    gone = torch.full((D_SAE,), 1e-42).bfloat16()
    assert not gone.any()
    rewrite(file, threshold=gone)
    refused(
        sae.path, "is a jumprelu without thresholds.*Save its thresholds in float32, or, where a plain ReLU is mean"
    )
    some = torch.full((D_SAE,), 0.5)
    some[:3] = 0
    rewrite(file, threshold=some)
    load_sae(str(tmp_path))
    assert "3 of the SAE's 64 thresholds are zero" in caplog.text
    untrained = published.dictionary_learning(tmp_path, "BatchTopKSAE")  # its threshold starts at -1
    rewrite(untrained.path / "ae.pt", threshold=torch.tensor(-1.0))
    refused(untrained.path, "is a jumprelu without thresholds.*never measured in training")
