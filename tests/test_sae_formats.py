"""Any SAE to the embedded form: equal to sae-lens' own, or refused with a sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny import D_MODEL, D_SAE, tiny_sae

from sparserm_hf.errors import SparseRMError
from sparserm_hf.sae.formats import LoadedSAE, load_sae

sae_lens = pytest.importorskip("sae_lens")

CASES = {
    "standard": ("StandardSAE", {}),
    "standard, layer norm": ("StandardSAE", {"normalize_activations": "layer_norm"}),
    "standard, b_dec not applied": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "gated": ("GatedSAE", {}),
    "jumprelu": ("JumpReLUSAE", {"normalize_activations": "constant_norm_rescale"}),
    "topk": ("TopKSAE", {"k": 8}),
    "topk, rescaled": ("TopKSAE", {"k": 8, "rescale_acts_by_decoder_norm": True}),
}


def save_with_sae_lens(folder, class_name, settings, hook="blocks.1.hook_resid_post"):
    config = getattr(sae_lens, f"{class_name}Config")(d_in=D_MODEL, d_sae=D_SAE, **settings)
    config.metadata.hook_name = hook
    config.metadata.neuronpedia_id = "tiny/1-res"
    sae = getattr(sae_lens, class_name)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else 1))
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize("case", CASES)
def test_latents_and_reconstruction_equal_those_of_sae_lens(case, tmp_path):
    reference = save_with_sae_lens(tmp_path, *CASES[case])
    loaded = load_sae(str(tmp_path))
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)) * 5
    with torch.no_grad():
        torch.testing.assert_close(loaded.autoencoder.encode(x), reference.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.autoencoder(x), reference(x), rtol=1e-5, atol=1e-4)
    assert torch.equal(loaded.autoencoder.W_dec, reference.W_dec)
    assert loaded.layer == 2
    assert loaded.source == {
        "source": tmp_path.name,
        "hook_name": "blocks.1.hook_resid_post",
        "neuronpedia_id": "tiny/1-res",
    }


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


def edit_config(folder, **changes):
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_cannot_be_embedded_is_refused(tmp_path):
    save_with_sae_lens(tmp_path, *CASES["topk"])
    weights = (tmp_path / "sae_weights.safetensors").read_bytes()
    for changes, message in (
        ({"architecture": "transcoder"}, "is a transcoder; those that can be embedded are"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it into the weights"),
        ({"k": None}, "needs k between 1 and 64"),
        ({"d_sae": 63}, "broken.*size mismatch"),
    ):
        original = (tmp_path / "cfg.json").read_text()
        edit_config(tmp_path, **changes)
        with pytest.raises(SparseRMError, match=message):
            load_sae(str(tmp_path))
        (tmp_path / "cfg.json").write_text(original)
    (tmp_path / "sae_weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(SparseRMError, match="is broken"):
        load_sae(str(tmp_path))
    save_file({"W_enc": torch.zeros(D_MODEL, D_SAE)}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(SparseRMError, match=r"is broken.*Missing key"):
        load_sae(str(tmp_path))
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(SparseRMError, match=r"must be a folder with cfg.json and sae_weights.safetensors"):
        load_sae(str(tmp_path))


def test_a_folder_written_by_an_older_sae_lens_is_read_as_sae_lens_reads_it(tmp_path):
    """Before version 6 a TopK SAE called itself standard; read by that name it was a plain ReLU, silently."""
    save_with_sae_lens(tmp_path, *CASES["topk"])
    old = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "hook_name": "blocks.1.hook_resid_post",
        "dtype": "float32",
        "device": "cpu",
    }
    old |= {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8}}
    old |= {"model_name": "tiny", "normalize_activations": "none", "apply_b_dec_to_input": True}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    loaded = load_sae(str(tmp_path))
    reference = sae_lens.SAE.load_from_disk(tmp_path)
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.autoencoder.encode(x), reference.encode(x), rtol=1e-5, atol=1e-5)
    assert (loaded.autoencoder.encode(x) > 0).sum(-1).max() <= 8 and loaded.layer == 2


def test_a_name_that_is_nowhere_gets_one_sentence():
    with pytest.raises(SparseRMError, match="'no/such-sae' is neither a folder nor to be had"):
        load_sae("no/such-sae")


@pytest.mark.parametrize(
    ("name", "release", "sae_id", "repo"),
    [
        (
            "gemma-scope-2b-pt-res-canonical/layer_13/width_16k/canonical",
            "gemma-scope-2b-pt-res-canonical",
            "layer_13/width_16k/canonical",
            "google/gemma-scope-2b-pt-res",
        ),
        ("somebody/my-saes/layer_3", "somebody/my-saes", "layer_3", "somebody/my-saes"),
    ],
)
def test_a_release_or_repository_is_loaded_by_sae_lens_and_pinned(name, release, sae_id, repo, tmp_path, monkeypatch):
    """No network here: sae-lens' own loader is replaced, the name's parts and the recorded commit are looked at."""
    reference = save_with_sae_lens(tmp_path / "sae", *CASES["jumprelu"])
    asked = []

    def from_pretrained(*arguments):
        asked.append(arguments)
        return reference

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", from_pretrained)
    refs = tmp_path / f"models--{repo.replace('/', '--')}" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = load_sae(name)
    assert asked == [(release, sae_id)]
    assert loaded.source == {
        "source": name,
        "release": release,
        "sae_id": sae_id,
        "repo": repo,
        "revision": "0123abc",
        "hook_name": "blocks.1.hook_resid_post",
        "neuronpedia_id": "tiny/1-res",
    }
    x = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.autoencoder.encode(x), reference.encode(x), rtol=1e-5, atol=1e-5)
