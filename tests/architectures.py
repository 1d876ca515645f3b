"""Tiny random models of every causal and vision-language architecture that transformers knows."""

from __future__ import annotations

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

DEPTH = 4
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
# What sizes are called, and what they are here.
SIZES = {
    32: "hidden_size n_embd d_model embed_dim hidden_dim word_embed_proj_dim embedding_size attention_hidden_size "
    "lru_width num_hidden out_hidden_size text_hidden_size projector_hidden_size embedding_dim mamba_d_ssm",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads linear_num_value_heads num_experts "
    "linear_num_heads num_local_experts n_routed_experts moe_num_experts qk_nope_head_dim qk_rope_head_dim depth "
    "hidden_size_per_layer_input",
    2: "num_key_value_heads num_kv_heads linear_num_key_heads num_experts_per_tok moe_k",
    8: "head_dim v_head_dim qk_head_dim q_lora_rank kv_lora_rank rotary_dim sliding_window attention_window d_head "
    "mamba_n_heads mamba_d_head mamba_d_state n_mamba_heads mamba_headdim mamba_num_heads mamba_head_dim state_size "
    "ssm_state_size chunk_size linear_key_head_dim linear_value_head_dim linear_head_dim lightning_head_dim",
    64: "intermediate_size ffn_dim decoder_ffn_dim n_inner ffn_hidden_size dim_ff d_inner projector_intermediate_size "
    "moe_shared_expert_intermediate_size position_embedding_size",
    16: "moe_intermediate_size expert_dim attention_head_dim",
    1: "n_shared_experts n_group topk_group mamba_n_groups mamba_ngroups n_groups bos_token_id",
    128: "max_position_embeddings n_positions max_seq_len",
    96: "vocab_size vocab_size_per_layer_input unpadded_vocab_size",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
SMALL |= {"pad_token_id": 0, "eos_token_id": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
TWO_KINDS = ["sliding_attention", "full_attention"] * 2
# The second half of the layers looks up keys of the first half.
_GEMMA = {"num_hidden_layers": DEPTH, "layer_types": TWO_KINDS, "num_kv_shared_layers": 2}
_GEMMA4 = _GEMMA | {"head_dim": 8, "global_head_dim": 16, "sliding_window": 8}
_EXPERTS = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "num_hidden_layers": DEPTH}
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_SEEING = {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [2, 1, 1]}}}
_NARROW = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_THINKER = {"vision_start_token_id": 5, "vision_end_token_id": 6}
# What a kind is made with, where its defaults are of no use, and what is set in it at the end, by its type.
GIVEN: dict[str, dict] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "dbrx": {
        "attn_config": {"rope_theta": 500.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64},
    },
    "deepseek_ocr2": {"text_config": _EXPERTS | {"mlp_layer_types": ["dense", "sparse"] * 2}},
    "deepseek_v2": _EXPERTS | {"num_key_value_heads": 4},
    "dots1": _EXPERTS,
    "gemma3n_text": _GEMMA,
    "gemma4_text": _GEMMA4,
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4 | {"num_kv_shared_layers": 0},
    "gemma4_unified": {"text_config": _GEMMA4 | {"num_kv_shared_layers": 0}},
    "cosmos3_edge": {"text_config": _SEEING["text_config"] | _NARROW},
    "lfm2_moe": {"num_hidden_layers": DEPTH, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "zamba2": {"num_hidden_layers": DEPTH, "layers_block_type": ["mamba", "hybrid"] * 2, "intermediate_size": 64},
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "glm4v", "glm46v", "glmga", "glm_ocr", "paddleocr_vl", "qwen3_vl", "qwen3_vl_moe"),
        _SEEING,
    ),
    "glm4v_moe": {"text_config": {"rope_parameters": _ROPE | {"mrope_section": [1, 1], "partial_rotary_factor": 0.5}}},
    "qwen2_5_omni_thinker": _SEEING | _THINKER,
    "qwen3_omni_moe_thinker": _THINKER,
}
SPECIAL: dict[str, dict] = {
    "blip_2_qformer": {"encoder_hidden_size": 32},
    "falcon_h1": {"mamba_d_head": 4},
    "instructblip_qformer": {"encoder_hidden_size": 32},
    "instructblipvideo_qformer": {"encoder_hidden_size": 32},
    "mamba2": {"num_heads": 8},
    "xlstm": {"num_blocks": DEPTH},
    "zamba": {"attention_hidden_size": 64, "num_key_value_heads": 4},
    "zamba2": {"attention_hidden_size": 64, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """Make a configuration tiny, in place, past its checks, which look at fields one at a time."""
    fields = vars(config)
    names = getattr(config, "attribute_map", None) or {}
    depth = next((fields[name] for name in DEPTH_NAMES if isinstance(fields.get(name), int)), None)
    for name, value in list(fields.items()):
        per_layer = isinstance(value, list) or (isinstance(value, str) and name.endswith("_pattern"))
        if per_layer and len(value) == depth and not name.startswith("_") and not name.endswith(("_id", "_ids")):
            kinds = list(dict.fromkeys(value))  # each kind of layer, the first ones among those that are kept
            some = [kinds[i % len(kinds)] for i in range(DEPTH)]
            fields[name] = "".join(some) if isinstance(value, str) else some
        elif isinstance(value, PretrainedConfig):
            shrink(value)
    for name, size in SMALL.items():
        name = names.get(name, name)
        is_size = isinstance(fields.get(name), (int, float)) and not isinstance(fields[name], bool)
        if name in fields and (is_size or name.endswith("head_dim")):
            fields[name] = size
    if "qk_rope_head_dim" in fields:
        fields |= {name: 4 for name in ("head_dim", "num_key_value_heads") if name in fields}
    for name in DEPTH_NAMES:
        if isinstance(fields.get(name), int):
            fields[name] = DEPTH
    fields |= SPECIAL.get(config.model_type, {})
    return config


def tiny_model(kind: str) -> PreTrainedModel:
    """A tiny random model of a kind that is a key of transformers' own mappings."""
    config = shrink(CONFIG_MAPPING[kind](**GIVEN.get(kind, {})))
    type(config).from_dict(config.to_dict())  # or it says why a configuration of such sizes is none
    loader = AutoModelForImageTextToText if kind in SEEING else AutoModelForCausalLM
    with torch.device("meta"):
        size = sum(p.numel() for p in loader.from_config(config).parameters())
    if size > 3e7:
        raise ValueError(f"with the sizes of the tests it still has {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    return loader.from_config(config).eval()


CAUSAL, SEEING = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
KINDS = sorted(CAUSAL | SEEING)
