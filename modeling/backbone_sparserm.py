"""The frozen base model: cut it after one layer, run it, pool its residual stream to one vector per sequence."""

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

CONFIG_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Fields of a configuration that end so are no per-layer lists, however long they are.
NOT_PER_LAYER = ("_id", "_ids", "_dtype")


def check_layer(layer: int, depth: int) -> None:
    """Raise a ValueError unless `layer` is between 1 and the number of layers."""
    if not 1 <= layer <= depth:
        raise ValueError(f"Layer {layer} is out of range: the base model has layers 1 to {depth}.")


def cut_config(config: PretrainedConfig, layer: int) -> None:
    """Make a base model's configuration, in place, stop after `layer` decoder layers.

    In place, because each decoder layer holds the same object: a copy could disagree about the attention in use.

    Raises:
        ValueError: `layer` is not between 1 and the number of layers.
    """
    depth = config.num_hidden_layers
    check_layer(layer, depth)
    fields = vars(config)  # written past their checks, which compare them with each other while only some are cut
    for name, value in list(fields.items()):
        # Per-layer lists such as `layer_types`, and patterns with a letter for each layer.
        per_layer = isinstance(value, list) or (isinstance(value, str) and name.endswith("_pattern"))
        if per_layer and len(value) == depth and not name.startswith("_") and not name.endswith(NOT_PER_LAYER):
            fields[name] = value[:layer]
    # GPT-Neo says which kinds of layers it has, and how often they are repeated.
    if "attention_types" in fields and "attention_layers" in fields:
        fields["attention_types"] = [[fields["attention_layers"], 1]]
    name = (getattr(config, "attribute_map", None) or {}).get("num_hidden_layers", "num_hidden_layers")
    if name in fields:
        fields[name] = layer
    else:
        config.num_hidden_layers = layer


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the decoder of a causal language model, or of a decoder itself."""
    base = model.base_model  # transformers 4 needs it for GPT-2
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    inner = getattr(decoder, "model", None)  # Llama 4 gives its language model for its decoder
    return inner if isinstance(inner, PreTrainedModel) else decoder


def decoder_layers_name(decoder: PreTrainedModel) -> str:
    """Find the name of a decoder's list of layers: its only list as long as its configuration says.

    Raises:
        ValueError: There is none, or more than one.
    """
    depth = getattr(decoder.config, "num_hidden_layers", None)
    lists = [
        name for name, child in decoder.named_children() if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(lists) != 1:
        raise ValueError(
            f"{type(decoder).__name__} is not an architecture that SparseRM can cut: it looked for one list of "
            f"{depth} decoder layers and found {', '.join(lists) or 'none'}."
        )
    return lists[0]


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a decoder, the first one first.

    Raises:
        ValueError: They are not found.
    """
    return getattr(decoder, decoder_layers_name(decoder))


def final_norm_name(decoder: PreTrainedModel) -> str | None:
    """Find the name of a decoder's final norm: its only norm, or its only one that is not called after the embedding.

    Returns:
        The name; None where the decoder has no norm.

    Raises:
        ValueError: It has more than one.
    """
    found = [name for name, child in decoder.named_children() if "norm" in type(child).__name__.casefold()]
    norms = [name for name in found if "emb" not in name] or found  # LFM2 calls its final norm `embedding_norm`
    if len(norms) > 1:
        raise ValueError(
            f"{type(decoder).__name__} is not an architecture that SparseRM can cut: it looked for one final norm and "
            f"found {', '.join(norms)}."
        )
    return norms[0] if norms else None


def use_exact_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model, in place, run the attention that it was trained with."""
    if getattr(model.config, "attn_logit_softcapping", None) and model.config._attn_implementation == "sdpa":
        # transformers 4 runs Gemma 2 in sdpa, which silently leaves the softcapping out; transformers 5 does not.
        model.set_attn_implementation("eager")
    return model


def prepare_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Make a decoder, in place, put out its residual stream: without the final norm, and with exact attention."""
    use_exact_attention(model)
    if norm := final_norm_name(model):
        setattr(model, norm, nn.Identity())
    return model


def backbone_from_config(config: PretrainedConfig) -> PreTrainedModel:
    """Build the cut base model of a checkpoint, without its weights."""
    return prepare_backbone(decoder_of(AutoModel.from_config(config)))


def cut_base_model(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Cut a base model, in place, so that its output is the residual stream after `layer` layers.

    The output then equals `hidden_states[layer]` of the whole model for every layer but the last, where the whole
    model applies its final norm first.

    Raises:
        ValueError: `layer` is out of range, or the layers or the final norm are not found.
    """
    decoder = decoder_of(model)
    layers = decoder_layers_name(decoder)
    cut_config(decoder.config, layer)
    setattr(decoder, layers, getattr(decoder, layers)[:layer])
    return prepare_backbone(decoder)


def load_causal_lm(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model, from safetensors only.

    Args:
        name_or_path: Hub id or folder.
        kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        OSError: It is not there, or only as a pickle.
        ValueError: It lacks some of its weights, or is no causal language model.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        name_or_path, output_loading_info=True, use_safetensors=True, **kwargs
    )
    if info["missing_keys"]:
        raise ValueError(f"The base model {name_or_path!r} lacks its weights {sorted(info['missing_keys'])[0]!r}.")
    return model


def load_decoder(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """Load a causal language model and return its decoder, without the language modelling head.

    Not `AutoModel.from_pretrained`: transformers 4 then finds none of a Gemma 3's weights, and says so in a warning.

    Args:
        name_or_path: Hub id or folder.
        kwargs: Passed to `load_causal_lm`, which says what is raised.
    """
    return decoder_of(load_causal_lm(name_or_path, **kwargs))


def load_cut_decoder(name_or_path: str, config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """Load the layers of a base model that a cut configuration keeps, and no others.

    The configuration in the base model's own folder is asked for nothing but its kind: transformers 4 may misread it.

    Args:
        name_or_path: Hub id or folder of the whole base model.
        config: Its configuration, cut.
        kwargs: Passed to `load_decoder`.
    """
    config = copy.deepcopy(config)
    whole = AutoConfig.from_pretrained(name_or_path, **{k: v for k, v in kwargs.items() if k in CONFIG_ARGUMENTS})
    text = whole.get_text_config()
    if text is not whole:  # a base model that sees too: its text side has another place among its weights
        name = next(name for name, value in vars(whole).items() if value is text)
        setattr(whole, name, config)
        config = whole
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the layers further up go unused is meant
    try:
        return prepare_backbone(load_decoder(name_or_path, config=config, **kwargs)).eval()
    finally:
        logging.set_verbosity(verbosity)


def mask_from_padding(input_ids: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Which tokens (B, T) are text, told from the pad tokens at either end.

    Args:
        input_ids: (B, T)
        config: With the ids of the special tokens.

    Raises:
        ValueError: This cannot be told: there is no pad token, or it may itself begin or end a text.
    """
    pad, bos, eos = config.pad_token_id, config.bos_token_id, config.eos_token_id
    if pad is None:
        if input_ids.shape[0] == 1:
            return torch.ones_like(input_ids)
        raise ValueError("Padding cannot be told from text without a pad token: pass attention_mask.")
    text = input_ids != pad
    mask = (text.cumsum(-1) > 0) & (text.flip(-1).cumsum(-1).flip(-1) > 0)
    if pad in (bos, *(eos if isinstance(eos, list) else [eos])) and not mask.all():
        raise ValueError(
            f"The pad token ({pad}) is also the end-of-text or begin-of-text token, so that padding cannot be told "
            "from text: pass attention_mask."
        )
    return mask.long()


def residual_stream(
    base_model: PreTrainedModel,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor,
    inputs_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the cut base model: (B, T) token ids to the (B, T, d_model) residual stream after its last layer.

    Positions count attended tokens only, so left padding does not move a text.
    """
    positions: dict[str, torch.Tensor] = {}
    taken = inspect.signature(base_model.forward).parameters
    # A Mamba of transformers 4 takes none. What wraps a model, such as FSDP, takes whatever the model does.
    if "position_ids" in taken or any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        positions["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return base_model(
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask.long(),
        use_cache=False,
        return_dict=True,
        **positions,
    ).last_hidden_state


def root_mean_square(tokens: torch.Tensor) -> torch.Tensor:
    """Of each token (..., d_model), never zero: (...)."""
    return tokens.pow(2).mean(-1).sqrt().clamp(min=1e-6)


def normalised_tokens(hidden: torch.Tensor, where: torch.Tensor, norm: str) -> torch.Tensor:
    """Tokens in float32 as they are averaged, (B, T, d_model); zero elsewhere.

    Args:
        hidden: (B, T, d_model) residual streams.
        where: (B, T) bool: the tokens.
        norm: With `rms`, each token is divided by its root mean square, which takes the attention sinks inside a text
            down to the size of any other token.
    """
    # Masked, not multiplied by zero: a padded position may hold an infinity.
    tokens = torch.where(where.unsqueeze(-1), hidden, 0.0).float()
    return tokens / root_mean_square(tokens).unsqueeze(-1) if norm == "rms" else tokens


def pool_representations(hidden: torch.Tensor, pooled: torch.Tensor, norm: str) -> torch.Tensor:
    """Average the pooled tokens, in float32: (B, T, d_model) and (B, T) bool to (B, d_model), zero without any."""
    tokens = normalised_tokens(hidden, pooled, norm)
    weight = pooled.float()  # (B, T)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1.0)
    return (weight.unsqueeze(1) @ tokens).squeeze(1)
