"""Texts that begin alike are run as one sequence, and come out as if each were alone."""

import pytest
import torch
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_of
from tiny import ARCHITECTURES, tiny_causal_lm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sparserm_hf.base_models import packing
from sparserm_hf.base_models.packing import Family, can_pack, find_families, run_packed

PROMPT = [1, 20, 21, 22, 23, 24, 25, 26]
TEXTS = [
    [*PROMPT, 40, 41, 42],
    [1, 7, 8],
    [*PROMPT, 40, 50],
    [*PROMPT, 60, 61, 62, 63],
    PROMPT,  # nothing of its own
    [9, 9],
]


def test_families_by_hand():
    """Four texts share a prompt. All but one share their first token too, which must not win over the prompt."""
    families = find_families(TEXTS)
    assert Family((4, 0, 2, 3), 8, 8 + 3 + 2 + 4) in families  # not with text 1, though it begins alike
    assert sorted(i for family in families for i in family.members) == list(range(6))
    assert all(family.length <= sum(len(TEXTS[i]) for i in family.members) for family in families)


def test_a_family_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(packing, "MAX_TOKENS", 14)
    families = find_families(TEXTS)
    assert max(family.length for family in families) <= 14
    assert sorted(i for family in families for i in family.members) == list(range(6))


WINDOWED = {"qwen2", "gemma2", "gemma3_text", "mistral"}  # their sliding window is 8 tokens


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in WINDOWED])
@torch.no_grad()
def test_a_packed_text_comes_out_as_if_alone(architecture, implementation):
    base = cut_base_model(tiny_causal_lm(architecture), 3)
    base.set_attn_implementation(implementation)
    families = find_families(TEXTS)
    members = [i for family in families for i in family.members]
    assert can_pack(base, 12) and len(families) < len(TEXTS)
    for i, states in zip(members, run_packed(base, TEXTS, families), strict=True):
        alone = base(torch.tensor([TEXTS[i]])).last_hidden_state[0]
        torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("architecture", sorted(WINDOWED))
@torch.no_grad()
def test_a_sliding_window_is_never_overruled(architecture):
    """Our mask takes the place of the model's own, which would stop a token from looking further back."""
    base = cut_base_model(tiny_causal_lm(architecture), 3)
    assert can_pack(base, 8) and not can_pack(base, 9)
    texts = [[1, 20, 21, 22, 23, 40], [1, 20, 21, 22, 23, 50, 51]]
    families = find_families(texts)
    for i, states in zip(families[0].members, run_packed(base, texts, families), strict=True):
        alone = base(torch.tensor([texts[i]])).last_hidden_state[0]
        torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-3)


HYBRID = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.mark.parametrize(
    "config",
    [
        HYBRID | {"model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]},
        HYBRID | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        HYBRID | {"model_type": "bloom"},  # counts positions by the mask
        HYBRID | {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ],
    ids=lambda config: config["model_type"],
)
def test_what_is_not_attention_by_position_is_not_packed(config):
    """A recurrent state would run on from one response into the next, whatever the mask says."""
    config = CONFIG_MAPPING[config["model_type"]](**config)
    assert not can_pack(decoder_of(AutoModelForCausalLM.from_config(config)), 10)


def test_flash_attention_takes_no_mask_of_ours():
    base = cut_base_model(tiny_causal_lm(), 2)
    assert can_pack(base, 10_000)
    base.config._attn_implementation = "flash_attention_2"
    assert not can_pack(base, 10)
