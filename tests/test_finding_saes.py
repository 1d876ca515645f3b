"""The published SAEs of a base model, and the choice of one of them."""

import logging

import pytest
from tiny import tiny_causal_lm
from transformers import CONFIG_MAPPING

from sparserm_hf import PRESETS, SparseRMTrainer, SparseRMTrainingConfig, find_saes
from sparserm_hf.cli.main import main
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.loading.choosing import chosen_sae
from sparserm_hf.sae.loading.listed_saes import ListedSAE, middle_sae


def sae(name, layer, width="16k", l0=60.0, model="tiny-it", explained=None):
    return ListedSAE(name, model, layer, width, l0, explained)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(sae("b", 8), sae("a", 5, model="tiny"), id="its own model before the nearer layer"),
        pytest.param(sae("b", 5, "8k"), sae("a", 6), id="the nearer layer before the wider SAE"),
        pytest.param(sae("b", 4), sae("a", 6), id="the earlier of two layers"),
        pytest.param(sae("b", 5), sae("a", 5, "65k"), id="the smaller of two widths that are enough"),
        pytest.param(sae("b", 5, "1m"), sae("a", 5, "8k"), id="a width that is enough"),
        pytest.param(sae("b", 5, "8k"), sae("a", 5, "4k"), id="the larger of two widths that are not enough"),
        pytest.param(sae("b", 5, "4k"), sae("a", 5, ""), id="a width that is known"),
        pytest.param(sae("b", 5, l0=20.0), sae("a", 5, l0=150.0), id="the lower of two L0"),
        pytest.param(sae("b", 5, l0=150.0), sae("a", 5, l0=None), id="an L0 that is known"),
        pytest.param(sae("a", 5), sae("b", 5), id="the first by name"),
        pytest.param(sae("b", 9), sae("a", None), id="a layer that is known"),
        pytest.param(sae("b", 9), sae("a", 5, explained=-0.2), id="one that explains something"),
    ],
)
def test_auto_takes_the_better_sae(better, worse):
    """The base model has 10 layers; the middle layer is number 5."""
    assert middle_sae([better, worse], "me/Tiny-it", 10) == middle_sae([worse, better], "me/Tiny-it", 10) == better


def test_auto_takes_the_median_l0_or_nothing():
    saes = [sae(f"L0 {l0}", 5, l0=l0) for l0 in (150.0, 20.0, 60.0)]
    assert middle_sae(saes, "tiny", 10).l0 == 60
    assert middle_sae([], "tiny", 10) is None and middle_sae([sae("a", None)], "tiny", 10) is None


def test_auto_says_what_it_took(caplog, tmp_path):
    config = CONFIG_MAPPING["gemma2"](num_hidden_layers=46)  # no preset has its base model
    taken = "gemma-scope-27b-pt-res/layer_22/width_131k/average_l0_48"
    for given in ("auto", None):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert chosen_sae(given, config, "google/gemma-2-27b-it") == taken
        assert caplog.messages == [f"The SAE for google/gemma-2-27b-it is {taken}: choose another with --sae."]
    assert chosen_sae("my/sae", config, "google/gemma-2-27b-it") == "my/sae"
    assert chosen_sae("auto", config, "google/gemma-2-2b-it") == PRESETS["gemma-2-2b-it"].sae
    (tmp_path / "gemma-2-27b-it").mkdir()
    with pytest.raises(SparseRMError, match="name one with --sae"):  # what is in a folder its name does not say
        chosen_sae("auto", config, str(tmp_path / "gemma-2-27b-it"))
    with pytest.raises(SparseRMError, match="name one with --sae"):
        chosen_sae("auto", tiny_causal_lm().config, "meta-llama/Llama-3.2-1B-Instruct")
    with pytest.raises(SparseRMError, match="name one with --sae"):  # and not that there is no SAE called auto
        SparseRMTrainer(tiny_causal_lm(), "auto", SparseRMTrainingConfig(str(tmp_path / "out")), [])


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
    gpt2 = {sae.name: sae for sae in find_saes("openai-community/gpt2")}
    assert gpt2["gpt2-small-res-jb/blocks.8.hook_resid_pre"].layer == 7, "whose output is the input of layer 8"
    assert "gpt2-small-res-jb/blocks.0.hook_resid_pre" not in gpt2, "which reads the embedding"
    assert gpt2["gpt2-small-res-jb/blocks.8.hook_resid_pre"].explained_variance == 0.9
    assert gpt2["gpt2-small-resid-post-v5-32k/blocks.6.hook_resid_post"].latents == 32_000
    assert not any(sae.name.startswith("temporal") for sae in find_saes("google/gemma-2-2b")), "not read"
    tuned = [sae for sae in saes if sae.name.startswith("gemma-scope-9b-it-res/")]
    assert {sae.model for sae in tuned} == {"gemma-2-9b-it"}
    assert {sae.explained_variance for sae in tuned} == {None}, "1 means that it was not measured"
    assert main(["sae", "find", "google/gemma-2-9b-it"]) == 0
    assert "gemma-scope-9b-it-res-canonical" in capsys.readouterr().out
    assert main(["sae", "find", "google/gemma-2-9b-it", "--layer", "31"]) == 0
    assert PRESETS["gemma-2-9b-it"].sae in capsys.readouterr().out
    assert main(["sae", "find", "nobody/nothing"]) == 2
    assert main(["sae", "find", "google/gemma-2-9b-it", "--layer", "99"]) == 2
    assert "train one with `sparserm sae train`" in capsys.readouterr().err
