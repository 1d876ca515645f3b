"""Any SAE to the embedded form, from wherever it is; what cannot be is refused with a sentence."""

import json
import pickle
import re
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import published_saes as published
import pytest
import sae_lens
import torch
from published_saes import HOOK, write_json
from safetensors.torch import load_file, save_file
from tiny import D_MODEL, D_SAE, tiny_sae

from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE, load_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GEMMA_SCOPE = "google/gemma-scope-2b-pt-res"


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.12.hook_resid_post", 13),
        ("blocks.12.hook_resid_pre", 12),
        ("blocks.0.hook_resid_post", 1),
        (None, None),
    ],
)
def test_the_hook_names_the_layer(hook, layer):
    source = {"source": "x", "hook_name": hook} if hook else {"source": "x"}
    assert LoadedSAE(tiny_sae(), source).layer == layer


@pytest.mark.parametrize("hook", ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "blocks.3.hook_resid_mid"])
def test_an_sae_on_another_hook_is_refused(hook):
    with pytest.raises(SparseRMError, match=f"trained on the hook '{hook}'.*residual stream"):
        _ = LoadedSAE(tiny_sae(), {"source": "x", "hook_name": hook}).layer


# --- provenance -----------------------------------------------------------------------------------------------------


def test_a_local_sae_says_where_it_came_from_but_no_path_of_this_machine(tmp_path):
    sae = published.sae_lens_sae(tmp_path / "mine", "StandardSAE")
    known = {"hook_name": HOOK, "neuronpedia_id": "tiny/1-res"}
    assert load_sae(str(sae.path)).source == {"source": "mine", "format": "sae-lens"} | known
    folder, _ = published.write_gemma_scope(tmp_path)
    assert load_sae(str(folder / "params.npz")).source == {
        "source": "params.npz",
        "format": "gemma-scope",
        "hook_name": HOOK,
        "model_name": "google/gemma-2-2b",
    }


def test_where_only_the_folder_would_name_the_layer_and_does_not_it_is_left_to_the_user(tmp_path):
    folder, _ = published.write_gemma_scope(tmp_path, repo="renamed")
    assert load_sae(str(folder)).layer is None
    sparsify = published.sparsify(tmp_path, expansion_factor=2).path
    assert load_sae(str(sparsify.rename(tmp_path / "renamed/sae"))).layer is None


@pytest.mark.parametrize(
    ("folder", "hook"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("h.0", "blocks.0.hook_resid_post"),
        ("layers.0.mlp", "blocks.0.mlp"),
        ("embed_tokens", None),
    ],
)
def test_the_hook_of_a_sparsify_sae_is_its_folders_name(folder, hook, tmp_path):
    path = published.sparsify(tmp_path, expansion_factor=2).path.rename(tmp_path / folder)
    write_json(tmp_path / "config.json", {"model": "EleutherAI/pythia-70m"})
    source = load_sae(str(path)).source
    assert (source.get("hook_name"), source["model_name"]) == (hook, "EleutherAI/pythia-70m")


@pytest.mark.parametrize(
    ("hook_point", "hook"),
    [
        ("model.layers.7.output", "blocks.7.hook_resid_post"),
        ("model.layers.7.self_attn.o_proj.input", "model.layers.7.self_attn.o_proj.input"),
        ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.post_feedforward_layernorm"),
    ],
)
def test_the_hook_of_a_gemma_scope_2_sae_is_in_its_configuration(hook_point, hook, tmp_path):
    path = published.gemma_scope_2(tmp_path, by_hand=True).path
    edit(path / "config.json", hf_hook_point_in=hook_point, hf_hook_point_out=hook_point)
    assert load_sae(str(path)).source["hook_name"] == hook


def test_qwen_scope_without_its_configuration_takes_k_from_the_folders_name(tmp_path):
    sae = published.qwen_scope(tmp_path, by_hand=True)
    (sae.path.parent / "config.json").unlink()
    loaded = load_sae(str(sae.path.parent))
    assert loaded.autoencoder.k == published.K and loaded.layer == 2
    moved = sae.path.rename(tmp_path / sae.path.name)
    refused(moved, "does not say its k: put the config.json of its repository beside it")


# --- the Hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hub to put repositories into, and no network: whatever opens a connection fails."""

    def no_network(*_, **__):
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def cache(repo: str) -> Path:
        home = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs/main").write_text(COMMIT)
        snapshot = home / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        return snapshot

    return cache


def register(monkeypatch, release, **facts):
    """A release in sae-lens' registry."""
    from sae_lens.loading import pretrained_saes_directory as registry

    known = dict(registry.get_pretrained_saes_directory())
    lookup = replace(known["gemma-scope-2b-pt-res-canonical"], release=release, conversion_func=None, **facts)
    monkeypatch.setattr(registry, "get_pretrained_saes_directory", lambda: known | {release: lookup})


def test_a_release_of_the_registry_is_read_out_of_the_cache_pinned_and_without_network(hub, tmp_path):
    folder, _ = published.write_gemma_scope(tmp_path, layer=13)
    target = hub(GEMMA_SCOPE) / "layer_13/width_16k/average_l0_84"
    target.parent.mkdir(parents=True)
    folder.rename(target)
    name = "gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical"
    loaded = load_sae(name)
    assert loaded.layer == 14
    assert loaded.source == {
        "source": name,
        "format": "gemma-scope",
        "release": "gemma-scope-2b-pt-res-canonical",
        "sae_id": "layer_13/width_16k/canonical",
        "repo": GEMMA_SCOPE,
        "revision": COMMIT,
        "hook_name": "blocks.13.hook_resid_post",
        "model_name": "google/gemma-2-2b",
        "neuronpedia_id": "gemma-2-2b/13-gemmascope-res-16k",
    }


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_repository_is_read_out_of_the_cache_pinned_and_without_network(revision, hub):
    sae = published.sae_lens_sae(hub("somebody/my-saes") / "layer_3", "JumpReLUSAE")
    loaded = load_sae(f"somebody/my-saes/layer_3{revision}")
    assert torch.equal(loaded.autoencoder.W_dec, sae.directions)
    assert loaded.source == {
        "source": f"somebody/my-saes/layer_3{revision}",
        "format": "sae-lens",
        "sae_id": "layer_3",
        "repo": "somebody/my-saes",
        "revision": COMMIT,
        "hook_name": HOOK,
        "neuronpedia_id": "tiny/1-res",
    }


def test_a_repository_may_hold_its_sae_at_the_top_or_in_a_file(hub, tmp_path):
    published.sae_lens_sae(hub("somebody/one-sae"), "StandardSAE")
    assert load_sae("somebody/one-sae").layer == 2
    qwen = published.qwen_scope(tmp_path, by_hand=True).path.parent
    snapshot = hub(f"Qwen/{qwen.name}")
    snapshot.rmdir()
    qwen.rename(snapshot)
    assert load_sae(f"Qwen/{qwen.name}/layer1.sae.pt").source["model_name"] == "Qwen/Qwen3-1.7B-Base"


def test_what_is_not_in_the_cache_is_asked_of_the_hub(hub):
    hub("somebody/my-saes")
    with pytest.raises((SparseRMError, AssertionError), match="the network was touched"):
        load_sae("somebody/my-saes/layer_4")


def test_a_repository_without_an_sae_at_that_place_says_where_there_are_some(hub, monkeypatch):
    """The whole repository is not fetched to find out; Qwen's hold 28 files of a gigabyte."""
    snapshot, asked = hub("Qwen/saes"), []
    monkeypatch.setattr(
        "sparserm_hf.sae.loading.hub_saes.snapshot_download",
        lambda repo, **kwargs: asked.append(kwargs) or str(snapshot),
    )
    files = [
        "README.md",
        "config.json",
        *(f"layer{i}.sae.pt" for i in range(28)),
        "a/b/cfg.json",
        "a/b/sae.safetensors",
    ]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, revision: files)
    refused("Qwen/saes", r"holds several SAEs, name one of them: a/b, layer0.sae.pt, layer1.sae.pt, .* and 21 more")
    refused("Qwen/saes/a", r"holds several SAEs, name one of them: a/b\.")
    assert "config.json" in asked[0]["allow_patterns"] and not any("*" in p for p in asked[0]["allow_patterns"])
    assert asked[-1]["allow_patterns"][:2] == ["a/sae_weights.safetensors", "a/sae.safetensors"]


@pytest.mark.parametrize("name", ["no/such-sae", "nothing", "/no/such/folder"])
def test_a_name_that_is_nowhere_gets_one_sentence(name):
    refused(name, "is neither a file or folder here, nor a release of sae-lens, nor to be had from the Hub: ")


def test_an_id_that_the_registry_does_not_have_is_answered_with_those_that_it_has():
    refused(
        "llama_scope_lxr_8x/l99r_8x",
        "not in sae-lens' registry: llama_scope_lxr_8x has l0r_8x, l10r_8x, .* and 24 more",
    )
    refused("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "in the format temporal, which cannot be embedded")


def test_what_only_the_registry_knows_is_folded_in(hub, monkeypatch):
    """The factor of a normalisation, and an input that TransformerLens had taken the mean off."""
    folder = hub("somebody/old-saes")
    sizes = {"normalize_activations": "expected_average_only_in"}
    sae = published.sae_lens_sae(folder / "a", "JumpReLUSAE", **sizes)
    facts = {"repo_id": "somebody/old-saes", "saes_map": {"a": "a"}, "neuronpedia_id": {}, "model": "tiny"}
    register(monkeypatch, "scaled", norm_scaling_factor={"a": 0.25}, config_overrides=None, **facts)
    loaded = load_sae("scaled/a").autoencoder
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)) * 5
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x), sae.encode(x * 0.25), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded(x), sae.reconstruct(x * 0.25) / 0.25, rtol=1e-5, atol=1e-4)

    sae = published.sae_lens_sae(folder / "b", "StandardSAE")
    facts["saes_map"] = {"b": "b"}
    centred = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    register(monkeypatch, "centred", norm_scaling_factor={}, config_overrides=centred, **facts)
    loaded = load_sae("centred/b").autoencoder
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.encode(x + 7), sae.encode(x - x.mean(-1, keepdim=True)), rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close(loaded.W_dec, sae.directions)

    published.sae_lens_sae(folder / "c", "StandardSAE", **sizes)
    facts["saes_map"] = {"c": "c"}
    register(monkeypatch, "unknown", norm_scaling_factor={}, config_overrides=None, **facts)
    refused("unknown/c", "expects activations normalised by 'expected_average_only_in'.*fold it into the weights")


def test_formats_of_one_release_are_left_to_sae_lens(hub, monkeypatch, tmp_path):
    published.sae_lens_sae(tmp_path / "sae", "StandardSAE")
    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    asked = []
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *names: asked.append(names) or sae)
    hub("Goodfire/Llama-3.1-8B-Instruct-SAE-l19")
    loaded = load_sae("goodfire-llama-3.1-8b-instruct/layer_19")
    assert asked == [("goodfire-llama-3.1-8b-instruct", "layer_19")]
    assert torch.equal(loaded.autoencoder.W_enc, sae.W_enc)
    assert loaded.source["revision"] == COMMIT
    assert loaded.source["model_name"] == "meta-llama/Llama-3.1-8B-Instruct"


# --- the boundary of firing -----------------------------------------------------------------------------------------


def at_the_threshold(module, threshold):
    """Latent i reads input i and fires above 2."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        threshold.fill_(2.0)
        encoder = module.W_enc.T if hasattr(module, "W_enc") else module.encoder.weight  # (d_sae, d_in)
        encoder.copy_(torch.eye(D_SAE, D_MODEL))
    return module


@pytest.mark.parametrize("kind", ["sae-lens", "dictionary_learning"])
def test_a_latent_exactly_at_its_threshold_does_not_fire(kind, tmp_path):
    """dictionary_learning's own comment says "at or above", its code and that of sae-lens say above."""
    if kind == "sae-lens":
        sae = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE))
        at_the_threshold(sae, sae.threshold.data).save_model(tmp_path / "sae")
        path = tmp_path / "sae"
    else:
        sae = published.DICTIONARIES["BatchTopKSAE"]()
        at_the_threshold(sae, sae.threshold)
        path = published.dictionary_learning(tmp_path, "BatchTopKSAE").path
        torch.save(sae.state_dict(), path / "ae.pt")
    x = torch.full((1, D_MODEL), 2.0)
    x[0, 5] = 2.5
    for encode in (load_sae(str(path)).autoencoder.encode, sae.encode):
        assert encode(x).nonzero().tolist() == [[0, 5]]


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(path, message):
    """Loading gives one sentence, and this one."""
    with pytest.raises(SparseRMError, match=message) as error:
        load_sae(str(path))
    text = str(error.value)
    assert text.startswith(f"The SAE {str(path)!r} ") and "\n" not in text and "Traceback" not in text


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(file, **changes):
    """Change tensors in a file of weights; None takes one out."""
    read = {".safetensors": load_file, ".npz": lambda f: dict(np.load(f)), ".pt": torch.load}[file.suffix]
    tensors = {name: t for name, t in (read(file) | changes).items() if t is not None}
    if file.suffix == ".npz":
        np.savez(file, **{name: np.asarray(t) for name, t in tensors.items()})
    else:
        (torch.save if file.suffix == ".pt" else save_file)(tensors, file)


WRITERS = {
    "sae_weights.safetensors": lambda path: published.sae_lens_sae(path, "JumpReLUSAE"),
    "sae.safetensors": lambda path: published.sparsify(path, expansion_factor=2),
    "params.npz": lambda path: published.gemma_scope(path, by_hand=True),
    "params.safetensors": lambda path: published.gemma_scope_2(path, by_hand=True),
    "checkpoints/final.safetensors": lambda path: published.llama_scope(path, by_hand=True, unit_decoder=False),
    "layer1.sae.pt": lambda path: published.qwen_scope(path, by_hand=True),
    "ae.pt": lambda path: published.dictionary_learning(path, "AutoEncoder"),
}


@pytest.fixture(params=WRITERS)
def any_format(request, tmp_path):
    """The file of weights of an SAE in each format."""
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
    """What runs when it is unpickled."""

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
    folder, _ = published.write_gemma_scope(tmp_path)
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
    qwen = published.qwen_scope(tmp_path, by_hand=True).path
    (qwen.parent / "layer2.sae.pt").write_bytes(qwen.read_bytes())
    refused(qwen.parent, "holds several SAEs, name one of them: layer1.sae.pt, layer2.sae.pt.")


@pytest.mark.parametrize(
    ("writer", "config", "changes", "message"),
    [
        ("sae_weights.safetensors", "cfg.json", {"architecture": "transcoder"}, "is a transcoder; those that can be"),
        ("sae_weights.safetensors", "cfg.json", {"architecture": "temporal"}, "is a temporal; those that can be"),
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
    refused(sae.path, "is a hourglass; those that can be embedded are")


def test_a_missing_k_is_refused(tmp_path):
    sae = published.sparsify(tmp_path, expansion_factor=2)
    config = json.loads((sae.path / "cfg.json").read_text())
    del config["k"]
    (sae.path / "cfg.json").write_text(json.dumps(config))
    refused(sae.path, "is broken: its files do not say 'k'")


def test_thresholds_that_were_rounded_to_zero_are_refused(tmp_path, caplog):
    """With all of them gone the SAE would silently be a plain ReLU; with some gone, some latents fire too easily."""
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


def test_thresholds_are_computed_in_float32_whatever_the_file_is_in(tmp_path):
    """In bfloat16, as sae-lens' registry has Llama Scope, a threshold is off by up to 0.4%."""
    sae = published.llama_scope(tmp_path, by_hand=True, unit_decoder=True)
    file = sae.path / "checkpoints/final.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file)
    threshold = load_sae(str(sae.path)).autoencoder.threshold
    norms = load_file(file)["decoder.weight"].float().norm(dim=0)
    expected = 0.2021484375 * D_MODEL**0.5 / 0.6 / norms
    torch.testing.assert_close(threshold, expected, rtol=1e-6, atol=0)
