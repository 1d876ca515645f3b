"""Tiny random models of every causal architecture that transformers knows."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DEPTH = 4
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
# What sizes are called, and what they are here.
SIZES = {
    32: "hidden_size n_embd d_model embed_dim hidden_dim word_embed_proj_dim embedding_size attention_hidden_size "
    "lru_width num_hidden",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads linear_num_value_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts qk_nope_head_dim qk_rope_head_dim",
    2: "num_key_value_heads num_kv_heads linear_num_key_heads num_experts_per_tok moe_k",
    8: "head_dim v_head_dim qk_head_dim q_lora_rank kv_lora_rank rotary_dim sliding_window attention_window d_head "
    "mamba_n_heads mamba_d_head mamba_d_state n_mamba_heads mamba_headdim mamba_num_heads mamba_head_dim state_size "
    "ssm_state_size chunk_size linear_key_head_dim linear_value_head_dim lightning_head_dim",
    64: "intermediate_size ffn_dim decoder_ffn_dim n_inner ffn_hidden_size dim_ff d_inner",
    16: "moe_intermediate_size expert_dim",
    1: "n_shared_experts n_group topk_group mamba_n_groups n_groups bos_token_id",
    128: "max_position_embeddings n_positions max_seq_len",
    96: "vocab_size",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
SMALL |= {"pad_token_id": 0, "eos_token_id": 2, "attn_layer_period": 2, "attn_layer_offset": 1}


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """Make a configuration tiny, in place, past its checks, which look at fields one at a time."""
    fields = vars(config)
    names = getattr(config, "attribute_map", None) or {}
    depth = next((fields[name] for name in DEPTH_NAMES if isinstance(fields.get(name), int)), None)
    for name, value in list(fields.items()):
        per_layer = isinstance(value, list) or (isinstance(value, str) and name.endswith("_pattern"))
        if per_layer and len(value) == depth and not name.startswith("_") and not name.endswith(("_id", "_ids")):
            fields[name] = value[:DEPTH]
    for name, size in SMALL.items():
        name = names.get(name, name)
        is_size = isinstance(fields.get(name), (int, float)) and not isinstance(fields[name], bool)
        if name in fields and (is_size or name.endswith("head_dim")):
            fields[name] = size
    if "qk_rope_head_dim" in fields:
        fields |= {name: 4 for name in ("head_dim", "num_key_value_heads") if name in fields}
    if config.model_type == "zaya":  # it takes no other number
        fields["num_experts_per_tok"] = 1
    for name in DEPTH_NAMES:
        if isinstance(fields.get(name), int):
            fields[name] = DEPTH
    return config


def tiny_model(kind: str) -> PreTrainedModel:
    """A tiny random model of a kind that is a key of transformers' own mapping."""
    config = shrink(CONFIG_MAPPING[kind]())
    text = config.get_text_config()
    if text is not config:
        shrink(text)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 2e7:
        raise ValueError(f"with the sizes of the tests it still has {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
