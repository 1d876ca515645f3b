"""Tiny random models: every architecture of the design, an SAE, a whole SparseRM, a tokenizer."""

from __future__ import annotations

import torch
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from sparserm_hf.modeling.configuration_sparserm import BEFORE_TRANSFORMERS_5, SparseRMConfig, legacy_rope_fields
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from sparserm_hf.conversations.encoding import ChatEncoder, TokenizedText
from sparserm_hf.conversations.response_marks import find_marks
from sparserm_hf.runtime.batches import pad_texts

D_MODEL, LAYERS, VOCAB, D_SAE = 32, 4, 96, 64
PAD, BOS, EOS, HEADER = 0, 1, 2, [4]

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "head_dim": 8}
_THETA = {"rope_type": "default", "rope_theta": 500.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Nothing is left at its default that transformers 4 and 5 keep under different names.
ARCHITECTURES: dict[str, dict] = {
    "llama": _GROUPED | {"rope_parameters": _LLAMA3},
    "qwen2": _GROUPED
    | {"rope_parameters": _THETA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": _GROUPED | {"rope_parameters": _THETA},
    "gemma2": _GROUPED | {"rope_parameters": _THETA, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": _GROUPED
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
    },
    "mistral": _GROUPED | {"rope_parameters": _THETA, "sliding_window": 8},
    "phi3": _COMMON | {"rope_parameters": _THETA | {"partial_rotary_factor": 0.5}, "num_key_value_heads": 2},
    "gpt2": _COMMON | {"n_inner": 64},
    "gpt_neox": _COMMON | {"rope_parameters": _THETA | {"partial_rotary_factor": 0.5}},
}


OBJECTIVES = [
    {"name": name, "weight": weight, "reward_mean": 0.5, "reward_std": 2.0}
    for name, weight in (("a", 1.0), ("b", -3.0))
]


def tiny_settings(architecture: str) -> dict:
    """The fields of a tiny configuration, by the names that the installed transformers reads."""
    settings = ARCHITECTURES[architecture]
    if BEFORE_TRANSFORMERS_5:
        settings = settings | legacy_rope_fields(settings | {"model_type": architecture})
    return settings


def tiny_causal_lm(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random causal language model whose weights are large enough that every layer matters."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[architecture](**tiny_settings(architecture))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return model


def latent_records(latents):
    """Records of six latents, three of either side."""
    separations = [0.3, 0.2, 0.1, -0.1, -0.2, -0.3]
    return [
        {"id": latent, "side": "chosen" if separation > 0 else "rejected", "separation": separation}
        for latent, separation in zip(latents, separations, strict=True)
    ]


def tiny_sae(
    architecture: str = "topk", d_in: int = D_MODEL, d_sae: int = D_SAE, seed: int = 1, **kwargs
) -> SparseAutoencoder:
    """A random SAE of which about half of the latents fire."""
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(d_in, d_sae, architecture, k=8 if architecture == "topk" else None, **kwargs)
    for name, buffer in sae.named_buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator) * (0.1 if buffer.ndim == 1 else 1.0))
        if name == "threshold":
            buffer.abs_()
    return sae


def tiny_reward_model(
    architecture: str = "llama",
    layer: int = 2,
    sae_architecture: str = "jumprelu",
    **config,
) -> SparseRMForSequenceClassification:
    """A whole random SparseRM model with six selected latents."""
    return reward_model_on(cut_base_model(tiny_causal_lm(architecture), layer), layer, sae_architecture, **config)


def reward_model_on(
    base: PreTrainedModel, layer: int, sae_architecture: str = "jumprelu", **config
) -> SparseRMForSequenceClassification:
    """The same on a base model that is cut already."""
    sae = tiny_sae(sae_architecture, base.config.hidden_size)
    latents = [3, 11, 8, 40, 5, 21]
    settings = {
        "base_model_name_or_path": "tiny",
        "response_marks": find_marks(tiny_tokenizer()),
        "latents": latent_records(latents),
        "sae": sae.spec(),
        "layer": layer,
    } | config
    model = SparseRMForSequenceClassification(SparseRMConfig(base_config=base.config, **settings), base_model=base)
    model.sae = sae
    model.directions = sae.W_dec[latents].clone()
    generator = torch.Generator().manual_seed(2)
    model.feature_mean = torch.randn(model.feature_mean.shape, generator=generator)
    if model.config.response_marks is not None:
        model.empty_features = torch.randn(model.feature_mean.shape, generator=generator)
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tiny_texts(seed: int = 3) -> list[list[int]]:
    """Token ids of six texts of different lengths, some with an assistant header, without special tokens inside."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(6, VOCAB, (count,), generator=generator).tolist()

    return [
        [BOS, *words(9), *HEADER, *words(6)],
        [BOS, *words(3)],
        [BOS, *words(2), *HEADER, *words(3), *HEADER, *words(14)],
        [BOS, *words(20)],
        [BOS, *words(1), *HEADER, *words(1)],
        [BOS, *words(30), *HEADER, *words(4)],
    ]


def tokenized(ids: list[int], start: int = 0) -> TokenizedText:
    """A text whose response is all of it, or all from a token on."""
    return TokenizedText(tuple(ids), start, start, len(ids))


def tiny_encoder(tokenizer: PreTrainedTokenizerFast | None = None, max_length: int | None = None) -> ChatEncoder:
    """What a tiny reward model reads texts with."""
    tokenizer = tokenizer or tiny_tokenizer()
    return ChatEncoder(tokenizer, find_marks(tokenizer), max_length=max_length)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def tiny_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE, pad_token: str | None = "<pad>"
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one id for each of a hundred words, with the usual special tokens."""
    specials = ["<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate(specials + [f"w{i}" for i in range(VOCAB - len(specials))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token=pad_token,
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
        chat_template=chat_template,
        model_input_names=["input_ids", "attention_mask"],  # by itself transformers 4 adds token types
    )


def tiny_rewards(model: torch.nn.Module) -> torch.Tensor:
    """(6,) rewards of the tiny texts in one padded batch, by a reward model or what wraps one."""
    ids, mask = pad_texts(tiny_texts(), torch.device("cpu"))
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]
