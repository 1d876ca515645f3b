"""SAEs on the Hub: loaded from its cache without a network, with their commits, and with the registry's facts."""

import socket
from dataclasses import replace
from pathlib import Path

import published_saes as published
import published_scopes as scopes
import pytest
import sae_lens
import torch
from published_saes import HOOK, refused
from tiny import D_MODEL

from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.loaded_sae import load_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GEMMA_SCOPE = "google/gemma-scope-2b-pt-res"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Make a cache of the Hub for repositories, and let every connection to the network fail."""

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
    """Add a release to sae-lens' registry."""
    from sae_lens.loading import pretrained_saes_directory as registry

    known = dict(registry.get_pretrained_saes_directory())
    lookup = replace(known["gemma-scope-2b-pt-res-canonical"], release=release, conversion_func=None, **facts)
    monkeypatch.setattr(registry, "get_pretrained_saes_directory", lambda: known | {release: lookup})


def test_a_release_of_the_registry_is_read_out_of_the_cache_pinned_and_without_network(hub, tmp_path):
    folder, _ = scopes.write_gemma_scope(tmp_path, layer=13)
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
    qwen = scopes.qwen_scope(tmp_path, by_hand=True).path.parent
    snapshot = hub(f"Qwen/{qwen.name}")
    snapshot.rmdir()
    qwen.rename(snapshot)
    assert load_sae(f"Qwen/{qwen.name}/layer1.sae.pt").source["model_name"] == "Qwen/Qwen3-1.7B-Base"


def test_what_is_not_in_the_cache_is_asked_of_the_hub(hub):
    hub("somebody/my-saes")
    with pytest.raises((SparseRMError, AssertionError), match="the network was touched"):
        load_sae("somebody/my-saes/layer_4")


def test_a_repository_without_an_sae_at_that_place_says_where_there_are_some(hub, monkeypatch):
    """The repository is not downloaded to find the SAEs: those of Qwen hold 28 files of a gigabyte."""
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
    refused(
        name, "is neither a file or folder here, nor a release of sae-lens, and cannot be downloaded from the Hub: "
    )


def test_an_id_that_the_registry_does_not_have_is_answered_with_those_that_it_has():
    refused(
        "llama_scope_lxr_8x/l99r_8x",
        "not in sae-lens' registry: llama_scope_lxr_8x has l0r_8x, l10r_8x, .* and 24 more",
    )
    refused("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "in the format temporal, which cannot be embedded")


def test_what_only_the_registry_knows_is_folded_in(hub, monkeypatch):
    """The registry knows the factor of a normalisation, and the centring of the residual stream by TransformerLens."""
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
