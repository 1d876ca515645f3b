"""Presets: in sae-lens' registry, and fitting the real models' shapes, with random weights."""

import re

import pytest
import torch
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import (
    cut_base_model,
    pool_representations,
    residual_stream,
)
from tiny import tiny_causal_lm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sparserm_hf import PRESETS
from sparserm_hf.activations import encode_texts
from sparserm_hf.cli import build_parser, main
from sparserm_hf.errors import SparseRMError
from sparserm_hf.sae.formats import LoadedSAE, load_sae
from sparserm_hf.sae.matching import default_sae, matching_layer
from sparserm_hf.sae.presets import SHIPPED_SAE, model_and_sae
from sparserm_hf.sae.registry import find_saes

# The real models' config.json on the Hub: what decides shapes.
GEMMA_2 = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 256_000,
}
CONFIGS = {
    "gemma-2-2b-it": (
        "gemma2",
        GEMMA_2 | {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8},
    ),
    "gemma-2-9b-it": (
        "gemma2",
        GEMMA_2
        | {"hidden_size": 3584, "intermediate_size": 14_336, "num_hidden_layers": 42, "num_attention_heads": 16}
        | {"num_key_value_heads": 8},
    ),
    "llama-3.1-8b-instruct": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128_256,
        },
    ),
    "smollm2-135m-instruct": (
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49_152,
        },
    ),
}
LAYERS = {"gemma-2-2b-it": 14, "gemma-2-9b-it": 32, "llama-3.1-8b-instruct": 16, "smollm2-135m-instruct": 18}
PAPER = {"gemma-2-2b-it": 13, "gemma-2-9b-it": 31, "llama-3.1-8b-instruct": 15}  # counted from 0, as Scope counts


def real_config(name, **smaller):
    architecture, numbers = CONFIGS[name]
    return CONFIG_MAPPING[architecture](**(numbers | smaller))


@pytest.mark.parametrize("name", PAPER)
def test_the_scope_saes_are_in_the_registry_of_sae_lens(name):
    """Their names on Neuronpedia say layer and width: 13-gemmascope-res-16k."""
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory").get_pretrained_saes_directory()
    release, _, sae_id = PRESETS[name].sae.partition("/")
    model, layer, kind, width = re.fullmatch(
        r"(.*)/(\d+)-(gemma|llama)scope-res-(\d+)k", directory[release].neuronpedia_id[sae_id]
    ).groups()
    assert sae_id in directory[release].saes_map and int(layer) == PAPER[name] == LAYERS[name] - 1
    base, ours = (re.sub(r"[^a-z0-9]", "", x.split("/")[-1].lower()) for x in (model, PRESETS[name].model))
    assert ours.startswith(base), "trained on this model, or on the base of its instruction-tuned variant"
    # The paper's authors name latent 86,761 of Gemma 2 9B.
    wanted = {"llama-3.1-8b-instruct": ("llama", "32"), "gemma-2-9b-it": ("gemma", "131")}
    assert (kind, width) == wanted.get(name, ("gemma", "16"))


@pytest.mark.parametrize("name", ["gemma-2-2b-it", "gemma-2-9b-it"])
def test_sae_lens_reads_width_and_hook_from_the_names_of_gemma_scope(name):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory").get_pretrained_saes_directory()
    release, _, sae_id = PRESETS[name].sae.partition("/")
    config = loaders.get_gemma_2_config_from_hf(directory[release].repo_id, directory[release].saes_map[sae_id], "cpu")
    assert config["d_in"] == CONFIGS[name][1]["hidden_size"]
    assert config["hook_name"] == f"blocks.{PAPER[name]}.hook_resid_post"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_real_model(name):
    """The whole model at its real shape without weights; then one real-width layer with random ones, into the SAE."""
    config = real_config(name)
    d_model, layer = config.hidden_size, LAYERS[name]
    sae = LoadedSAE(SparseAutoencoder(d_model, 32), {"hook_name": f"blocks.{layer - 1}.hook_resid_post"})
    if name not in PAPER:
        sae = load_sae(PRESETS[name].sae)
    assert matching_layer(sae, config, PRESETS[name].model) == layer
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    cut = cut_base_model(whole, layer)
    assert len(cut.layers) == cut.config.num_hidden_layers == layer
    assert cut.layers[-1].mlp.down_proj.out_features == cut.embed_tokens.embedding_dim == sae.autoencoder.d_in

    small = real_config(name, vocab_size=64, num_hidden_layers=1, intermediate_size=64, pad_token_id=0)
    base = cut_base_model(AutoModelForCausalLM.from_config(small).eval(), 1)
    ids = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        hidden = residual_stream(base, ids, torch.ones_like(ids))
        pooled = torch.ones_like(ids).bool()
        assert pool_representations(hidden, pooled, "rms").shape == (2, d_model)
    for encoded in encode_texts(hidden, pooled, sae.autoencoder):
        assert encoded.shape == (6, sae.autoencoder.d_sae) and torch.isfinite(encoded).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_base_model_named_by_its_id_has_its_sae(name):
    assert default_sae(real_config(name), PRESETS[name].model) == PRESETS[name].sae


def test_the_shipped_sae_is_found_by_shape_too():
    assert default_sae(real_config("smollm2-135m-instruct"), "a/folder") == str(SHIPPED_SAE)
    with pytest.raises(SparseRMError, match="No SAE is known for the base model 'tiny'"):
        default_sae(tiny_causal_lm().config, "tiny")


@pytest.mark.parametrize("command", [["train", "--output_dir", "out"], ["sae", "check"]], ids=" ".join)
def test_a_preset_on_the_command_line(command, capsys):
    def parsed(*arguments):
        args = build_parser().parse_args([*command, "--dataset", "data", *arguments])
        return model_and_sae(args.preset, args.model, args.sae)

    gemma = PRESETS["gemma-2-2b-it"]
    assert parsed("--preset", "gemma-2-2b-it") == (gemma.model, gemma.sae)
    assert parsed("--preset", "gemma-2-2b-it", "--model", "my/copy") == ("my/copy", gemma.sae)
    assert parsed("--preset", "gemma-2-2b-it", "--sae", "my/sae") == (gemma.model, "my/sae")
    assert parsed("--model", "my/copy") == ("my/copy", None)
    with pytest.raises(SystemExit):
        parsed("--preset", "gpt-5")
    assert "invalid choice: 'gpt-5'" in capsys.readouterr().err
    arguments = [*command, "--dataset", "data"]
    assert main(arguments) == 2
    assert (
        "No base model is given: name one with --model, or take a --preset (gemma-2-2b-it" in capsys.readouterr().err
    )


def test_the_saes_of_a_base_model_are_found_in_the_registry(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    saes = find_saes("google/gemma-2-9b-it")
    names = {sae.name for sae in saes}
    assert (
        PRESETS["gemma-2-9b-it"].sae in names
        and "gemma-scope-9b-pt-res-canonical/layer_20/width_16k/canonical" in names
    )
    assert not any(part in sae.name for sae in saes for part in ("att", "mlp", "transcoder", "resid_mid"))
    ours = next(sae for sae in saes if sae.name == PRESETS["gemma-2-9b-it"].sae)
    assert (ours.layer, ours.width, ours.model) == (31, "131k", "gemma-2-9b-it")
    assert {sae.model for sae in find_saes("meta-llama/Llama-3.1-8B-Instruct")} >= {"meta-llama/Llama-3.1-8B"}
    assert find_saes("openai-community/gpt2")[0].layer == 0
    assert main(["sae", "find", "google/gemma-2-9b-it"]) == 0
    assert "gemma-scope-9b-it-res-canonical" in capsys.readouterr().out
    assert main(["sae", "find", "google/gemma-2-9b-it", "--layer", "31"]) == 0
    assert PRESETS["gemma-2-9b-it"].sae in capsys.readouterr().out
    assert main(["sae", "find", "nobody/nothing"]) == 2
    assert main(["sae", "find", "google/gemma-2-9b-it", "--layer", "99"]) == 2
    assert "train one with `sparserm sae train`" in capsys.readouterr().err
