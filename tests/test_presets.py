"""Presets are in sae-lens' registry, and their SAEs fit the shapes of the real models."""

import re
from pathlib import Path

import pytest
import torch
from sae_lens.loading.pretrained_sae_loaders import get_gemma_2_config_from_hf, get_qwen_scope_config_from_hf
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_layers, residual_stream
from sparserm_hf.modeling.pooling_sparserm import pool_representations
from tiny import tiny_causal_lm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sparserm_hf import PRESETS
from sparserm_hf.cli.main import build_parser, main
from sparserm_hf.representations.activations import encode_texts
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.choosing import default_sae, matching_layer
from sparserm_hf.sae.loading.listed_saes import find_saes, middle_sae
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE, load_sae
from sparserm_hf.sae.loading.presets import SHIPPED_SAE, model_and_sae

# The real models' config.json on the Hub: what decides shapes. Then their parameters, in millions.
GEMMA_2 = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 256_000,
}


def sizes(hidden, intermediate, layers, heads, key_value_heads, **others):
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    } | others


def gemma_3(*numbers, **others):
    return sizes(*numbers, **{"head_dim": 256, "sliding_window": 512, "vocab_size": 262_144} | others)


def gemma_3_that_sees(*numbers, **others):
    vision = sizes(1152, 4304, 27, 16, None, image_size=896, patch_size=14, vision_use_head=False)
    del vision["num_key_value_heads"]
    text = gemma_3(*numbers, **{"sliding_window": 1024, "vocab_size": 262_208} | others)
    return {"text_config": text, "vision_config": vision}


QWEN_3 = {"head_dim": 128, "vocab_size": 151_936}
EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
CONFIGS = {
    "gemma-2-2b-it": ("gemma2", GEMMA_2 | sizes(2304, 9216, 26, 8, 4), 2614),
    "gemma-2-9b-it": ("gemma2", GEMMA_2 | sizes(3584, 14_336, 42, 16, 8), 9242),
    "gemma-3-270m-it": ("gemma3_text", gemma_3(640, 2048, 18, 4, 1), 268),
    "gemma-3-1b-it": ("gemma3_text", gemma_3(1152, 6912, 26, 4, 1), 1000),
    "gemma-3-4b-it": ("gemma3", gemma_3_that_sees(2560, 10_240, 34, 8, 4), 4300),
    "gemma-3-12b-it": ("gemma3", gemma_3_that_sees(3840, 15_360, 48, 16, 8), 12_187),
    "gemma-3-27b-it": ("gemma3", gemma_3_that_sees(5376, 21_504, 62, 32, 16, head_dim=128), 27_432),
    "llama-3.1-8b-instruct": ("llama", sizes(4096, 14_336, 32, 32, 8, vocab_size=128_256), 8030),
    "qwen3-1.7b": ("qwen3", QWEN_3 | sizes(2048, 6144, 28, 16, 8, tie_word_embeddings=True), 1721),
    "qwen3-8b": ("qwen3", QWEN_3 | sizes(4096, 12_288, 36, 32, 8), 8191),
    "qwen3-30b-a3b": ("qwen3_moe", QWEN_3 | EXPERTS | sizes(2048, 6144, 48, 32, 4), 30_532),
    "gpt2": ("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50_257}, 124),
    "pythia-70m-deduped": ("gpt_neox", sizes(512, 2048, 6, 8, 8, vocab_size=50_304), 70),
    "smollm2-135m-instruct": ("llama", sizes(576, 1536, 30, 9, 3, vocab_size=49_152, tie_word_embeddings=True), 135),
}
LAYERS = {  # that are kept
    "gemma-2-2b-it": 14,
    "gemma-2-9b-it": 32,
    "gemma-3-270m-it": 10,
    "gemma-3-1b-it": 14,
    "gemma-3-4b-it": 18,
    "gemma-3-12b-it": 25,
    "gemma-3-27b-it": 32,
    "llama-3.1-8b-instruct": 16,
    "qwen3-1.7b": 15,
    "qwen3-8b": 19,
    "qwen3-30b-a3b": 25,
    "gpt2": 7,
    "pythia-70m-deduped": 4,
    "smollm2-135m-instruct": 18,
}
PAPER = {"gemma-2-2b-it": 13, "gemma-2-9b-it": 31, "llama-3.1-8b-instruct": 15}  # counted from 0, as Scope counts
REGISTERED = [name for name in PRESETS if name != "smollm2-135m-instruct"]
DOCS = Path(__file__).parent.parent / "docs" / "presets.md"


def real_config(name, **smaller):
    architecture, numbers, _ = CONFIGS[name]
    return CONFIG_MAPPING[architecture](**(numbers | smaller))


def registered(name):
    """Return the release of a preset in sae-lens' registry, and the id of its SAE there."""
    release, _, sae_id = PRESETS[name].sae.partition("/")
    return get_pretrained_saes_directory()[release], sae_id


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_saes_are_named_on_neuronpedia(name):
    """Names on Neuronpedia tell layer and width: 13-gemmascope-res-16k."""
    release, sae_id = registered(name)
    model, layer, kind, width = re.fullmatch(
        r"(.*)/(\d+)-(gemma|llama)scope-res-(\d+)k", release.neuronpedia_id[sae_id]
    ).groups()
    assert int(layer) == PAPER[name] == LAYERS[name] - 1
    base, ours = (re.sub(r"[^a-z0-9]", "", x.split("/")[-1].lower()) for x in (model, PRESETS[name].model))
    assert ours.startswith(base), "trained on this model, or on the base of its instruction-tuned variant"
    # The paper's authors name latent 86,761 of Gemma 2 9B.
    wanted = {"llama-3.1-8b-instruct": ("llama", "32"), "gemma-2-9b-it": ("gemma", "131")}
    assert (kind, width) == wanted.get(name, ("gemma", "16"))


@pytest.mark.parametrize("name", REGISTERED)
def test_a_preset_is_in_the_registry(name):
    """The SAE encodes the residual stream after its layer, of this model or its base, in a known format."""
    preset, depth = PRESETS[name], real_config(name).get_text_config().num_hidden_layers
    saes = find_saes(preset.model)
    ours = next(sae for sae in saes if sae.name == preset.sae)
    assert ours.layer == LAYERS[name] - 1 < depth
    release, sae_id = registered(name)
    assert re.search(r"resid_post|-res|lxr|SAE-Res", f"{preset.sae} {release.repo_id}") and "resid_pre" not in sae_id
    own, trained_on = (x.rpartition("/")[2].lower().replace("-small", "") for x in (preset.model, ours.model))
    assert ("trained on this model" in preset.why) == (own == trained_on)
    if name not in PAPER and name != "pythia-70m-deduped":
        assert middle_sae(saes, preset.model, depth) == ours, "auto takes the same"


@pytest.mark.parametrize("name", REGISTERED)
def test_what_sae_lens_knows_of_a_preset_fits_the_real_model(name):
    """For some formats sae-lens knows d_in without the files; for Llama Scope it knows the expansion factor."""
    release, sae_id = registered(name)
    path, d_model = release.saes_map[sae_id], real_config(name).get_text_config().hidden_size
    read = {"gemma_2": get_gemma_2_config_from_hf, "qwen_scope": get_qwen_scope_config_from_hf}
    if release.conversion_func in read:
        config = read[release.conversion_func](release.repo_id, path, "cpu")
        assert (config["d_in"], config["hook_name"]) == (d_model, f"blocks.{LAYERS[name] - 1}.hook_resid_post")
    elif release.conversion_func == "llama_scope":
        assert path.endswith("-8x") and release.neuronpedia_id[sae_id].endswith(f"-{8 * d_model // 1024}k")
    elif release.conversion_func == "gemma_3":
        assert path == f"resid_post/{sae_id}"
    else:
        assert release.conversion_func is None and sae_id == f"blocks.{LAYERS[name] - 1}.hook_resid_post"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_real_model(name):
    """The whole model has its real shape, but no weights."""
    config, layer = real_config(name), LAYERS[name]
    d_model = config.get_text_config().hidden_size
    sae = LoadedSAE(SparseAutoencoder(d_model, 32), {"hook_name": f"blocks.{layer - 1}.hook_resid_post"})
    if name not in REGISTERED:
        sae = load_sae(PRESETS[name].sae)
    assert matching_layer(sae, config.get_text_config(), PRESETS[name].model) == layer
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    assert round(sum(p.numel() for p in whole.parameters()) / 1e6) == CONFIGS[name][2], "the published number"
    cut = cut_base_model(whole, layer)
    assert len(decoder_layers(cut)) == cut.config.num_hidden_layers == layer
    assert cut.get_input_embeddings().embedding_dim == sae.autoencoder.d_in


@pytest.mark.parametrize("name", [*PAPER, "smollm2-135m-instruct"])
def test_one_layer_of_the_real_width_goes_into_the_sae(name):
    small = real_config(name, vocab_size=64, num_hidden_layers=1, intermediate_size=64, pad_token_id=0)
    base = cut_base_model(AutoModelForCausalLM.from_config(small).eval(), 1)
    autoencoder = SparseAutoencoder(small.hidden_size, 32)
    ids = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        hidden = residual_stream(base, ids, torch.ones_like(ids))
        pooled = torch.ones_like(ids).bool()
        assert pool_representations(hidden, pooled, "rms").shape == (2, small.hidden_size)
    for encoded in encode_texts(hidden, pooled, autoencoder):
        assert encoded.shape == (6, autoencoder.d_sae) and torch.isfinite(encoded).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_base_model_named_by_its_id_has_its_sae(name):
    assert default_sae(real_config(name), PRESETS[name].model) == PRESETS[name].sae


def test_the_shipped_sae_is_found_by_shape_too():
    assert default_sae(real_config("smollm2-135m-instruct"), "a/folder") == str(SHIPPED_SAE)
    with pytest.raises(SparseRMError, match="No SAE is known for the base model 'tiny'"):
        default_sae(tiny_causal_lm().config, "tiny")


def test_the_table_of_presets_in_the_manual():
    rows = []
    for name, preset in PRESETS.items():
        own = "the package's own" if preset.sae == str(SHIPPED_SAE) else f"`{preset.sae}`"
        rows.append(f"| `{name}` | {preset.model} | {own} | {preset.why} |")
    assert "\n".join(rows) in DOCS.read_text(), "put this into docs/presets.md:\n" + "\n".join(rows)
    assert f"[{len(PRESETS)} base models](docs/presets.md)" in (DOCS.parent.parent / "README.md").read_text()


@pytest.mark.parametrize("command", [["train", "--output_dir", "out"], ["sae", "check"]], ids=" ".join)
def test_a_preset_on_the_command_line(command, capsys):
    def parsed(*arguments):
        arguments = [*command, "--dataset", "data", *arguments]
        args = build_parser(arguments).parse_args(arguments)
        return model_and_sae(args.preset, args.model, args.sae)

    gemma = PRESETS["gemma-2-2b-it"]
    assert parsed("--preset", "gemma-2-2b-it") == (gemma.model, gemma.sae)
    assert parsed("--preset", "gemma-2-2b-it", "--model", "my/copy") == ("my/copy", gemma.sae)
    assert parsed("--preset", "gemma-2-2b-it", "--sae", "my/sae") == (gemma.model, "my/sae")
    assert parsed("--preset", "gemma-2-2b-it", "--sae", "auto") == (gemma.model, gemma.sae)
    assert parsed("--model", "my/copy") == ("my/copy", "auto")
    with pytest.raises(SystemExit):
        parsed("--preset", "gpt-5")
    assert "invalid choice: 'gpt-5'" in capsys.readouterr().err
    arguments = [*command, "--dataset", "data"]
    assert main(arguments) == 2
    assert (
        "No base model is given: name one with --model, or take a --preset (gemma-2-2b-it" in capsys.readouterr().err
    )
