"""Facts in the files of SAEs: hooks, provenance and thresholds."""

import published_saes as published
import published_scopes as scopes
import pytest
import sae_lens
import torch
from published_saes import HOOK, edit, refused, write_json
from safetensors.torch import load_file, save_file
from tiny import D_MODEL, D_SAE, tiny_sae

from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE, load_sae


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
    folder, _ = scopes.write_gemma_scope(tmp_path)
    assert load_sae(str(folder / "params.npz")).source == {
        "source": "params.npz",
        "format": "gemma-scope",
        "hook_name": HOOK,
        "model_name": "google/gemma-2-2b",
    }


def test_where_only_the_folder_would_name_the_layer_and_does_not_it_is_left_to_the_user(tmp_path):
    folder, _ = scopes.write_gemma_scope(tmp_path, repo="renamed")
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
    path = scopes.gemma_scope_2(tmp_path, by_hand=True).path
    edit(path / "config.json", hf_hook_point_in=hook_point, hf_hook_point_out=hook_point)
    assert load_sae(str(path)).source["hook_name"] == hook


def test_qwen_scope_without_its_configuration_takes_k_from_the_folders_name(tmp_path):
    sae = scopes.qwen_scope(tmp_path, by_hand=True)
    (sae.path.parent / "config.json").unlink()
    loaded = load_sae(str(sae.path.parent))
    assert loaded.autoencoder.k == published.K and loaded.layer == 2
    moved = sae.path.rename(tmp_path / sae.path.name)
    refused(moved, "does not say its k: put the config.json of its repository beside it")


# --- the boundary of firing -----------------------------------------------------------------------------------------


def at_the_threshold(module, threshold):
    """Set the weights so that latent i fires if input i is above 2."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        threshold.fill_(2.0)
        encoder = module.W_enc.T if hasattr(module, "W_enc") else module.encoder.weight  # (d_sae, d_in)
        encoder.copy_(torch.eye(D_SAE, D_MODEL))
    return module


@pytest.mark.parametrize("kind", ["sae-lens", "dictionary_learning"])
def test_a_latent_exactly_at_its_threshold_does_not_fire(kind, tmp_path):
    """A comment in dictionary_learning says "at or above", but its code, like sae-lens', says above."""
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


def test_thresholds_are_computed_in_float32_whatever_the_file_is_in(tmp_path):
    """In bfloat16, the type of Llama Scope's files, a threshold is off by up to 0.4%."""
    sae = scopes.llama_scope(tmp_path, by_hand=True, unit_decoder=True)
    file = sae.path / "checkpoints/final.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file)
    threshold = load_sae(str(sae.path)).autoencoder.threshold
    norms = load_file(file)["decoder.weight"].float().norm(dim=0)
    expected = 0.2021484375 * D_MODEL**0.5 / 0.6 / norms
    torch.testing.assert_close(threshold, expected, rtol=1e-6, atol=0)
