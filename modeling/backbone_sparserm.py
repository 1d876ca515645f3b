"""The frozen base model: cut it after one layer, run it, pool its residual stream to one vector per sequence."""

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from .autoencoder_sparserm import SparseAutoencoder

POOLINGS = ("last", "mean", "response_mean")
REPRESENTATION_NORMS = ("none", "rms")

# Where the decoder layers and the final norm are found: Llama and its many kin, GPT-2, GPT-NeoX.
LAYER_NAMES = ("layers", "h")
NORM_NAMES = ("norm", "ln_f", "final_layer_norm")


def cut_config(config: PretrainedConfig, layer: int) -> None:
    """Make a base model's configuration, in place, stop after `layer` decoder layers.

    In place, because each decoder layer holds the same object: a copy could disagree about the attention in use.

    Raises:
        ValueError: `layer` is not between 1 and the number of layers.
    """
    depth = config.num_hidden_layers
    if not 1 <= layer <= depth:
        raise ValueError(f"Layer {layer} is out of range: the base model has layers 1 to {depth}.")
    config.num_hidden_layers = layer
    for name, value in list(vars(config).items()):
        # Per-layer lists such as `layer_types`: Gemma 2 and Qwen refuse to be saved with entries left over.
        if name.endswith(("_types", "_layers", "_pattern")) and isinstance(value, list) and len(value) == depth:
            setattr(config, name, value[:layer])


def _only_name(model: nn.Module, candidates: tuple[str, ...], what: str) -> str:
    found = [name for name in candidates if isinstance(getattr(model, name, None), nn.Module)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} is not an architecture that SparseRM can cut: it looked for {what} under the "
            f"names {', '.join(candidates)} and found {', '.join(found) or 'none'}."
        )
    return found[0]


def remove_final_norm(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the final norm by the identity, so that the output is the residual stream itself."""
    setattr(model, _only_name(model, NORM_NAMES, "the final norm"), nn.Identity())
    return model


def cut_base_model(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Cut a base model, in place, so that its output is the residual stream after `layer` layers.

    The output then equals `hidden_states[layer]` of the whole model for every layer but the last, where the whole
    model applies its final norm first.

    Raises:
        ValueError: `layer` is out of range, or the layers or the final norm are not found.
    """
    decoder = model.get_decoder()
    layers = _only_name(decoder, LAYER_NAMES, "the decoder layers")
    cut_config(decoder.config, layer)
    setattr(decoder, layers, getattr(decoder, layers)[:layer])
    return remove_final_norm(decoder)


def load_cut_base_model(name_or_path: str, layer: int, **kwargs) -> PreTrainedModel:
    """`AutoModel.from_pretrained` and then `cut_base_model`; takes the keyword arguments of the former."""
    return cut_base_model(AutoModel.from_pretrained(name_or_path, **kwargs), layer).eval()


def residual_stream(
    base_model: PreTrainedModel,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor,
    inputs_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the cut base model: (B, T) token ids to the (B, T, d_model) residual stream after its last layer.

    Positions count attended tokens only, so left padding does not move a text.
    """
    return base_model(
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask.long(),
        position_ids=(attention_mask.long().cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state


def response_start(input_ids: torch.Tensor, attended: torch.Tensor, marker_ids: list[int]) -> torch.Tensor:
    """Index (B,) of the token after the last occurrence of `marker_ids`, or 0 where there is none.

    Args:
        input_ids: (B, T)
        attended: (B, T) bool
        marker_ids: Token ids of the chat template's assistant header.
    """
    length = len(marker_ids)
    if length == 0 or input_ids.shape[1] < length:
        return input_ids.new_zeros(input_ids.shape[0])
    marker = torch.tensor(marker_ids, device=input_ids.device)
    found = (input_ids.unfold(1, length, 1) == marker).all(-1) & attended.unfold(1, length, 1).all(-1)  # (B, T-m+1)
    ends = torch.arange(length, input_ids.shape[1] + 1, device=input_ids.device)
    return (found * ends).amax(-1)


def pooled_tokens(
    input_ids: torch.Tensor | None, attention_mask: torch.Tensor, pooling: str, marker_ids: list[int]
) -> torch.Tensor:
    """Which tokens of each sequence are pooled, as (B, T) bool.

    The first attended token is the attention sink: its norm is over a hundred times that of the others and it says
    nothing about the text, so it is never pooled. A sequence without any other token has no pooled token at all.

    Args:
        input_ids: (B, T); needed for `response_mean` only.
        attention_mask: (B, T), nonzero where a token is attended.
        pooling: One of ``POOLINGS``.
        marker_ids: Token ids of the chat template's assistant header.

    Raises:
        ValueError: `response_mean` without token ids.
    """
    attended = attention_mask.bool()
    index = torch.arange(attended.shape[1], device=attended.device)
    last = (attended * index).amax(-1, keepdim=True)
    sink = (~attended * attended.shape[1] + index).amin(-1, keepdim=True)
    candidates = attended & (index > sink)
    if pooling == "last":
        return candidates & (index == last)
    if pooling == "response_mean":
        if input_ids is None:
            raise ValueError("pooling='response_mean' finds the response by its token ids: pass input_ids.")
        return candidates & (index >= response_start(input_ids, attended, marker_ids).unsqueeze(-1))
    return candidates


def pool_representations(hidden: torch.Tensor, pooled: torch.Tensor, norm: str) -> torch.Tensor:
    """Mean over the pooled tokens, in float32: (B, T, d_model) and (B, T) bool to (B, d_model).

    With `norm="rms"` each token is divided by its root mean square first, which takes the attention sinks inside a
    text down to the size of any other token.
    """
    hidden = hidden.float()
    if norm == "rms":
        hidden = hidden / hidden.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
    weight = pooled.float().unsqueeze(-1)  # (B, T, 1)
    # Masked, not multiplied by zero: a padded position may hold an infinity.
    total = torch.where(pooled.unsqueeze(-1), hidden, 0.0).sum(1)
    return total / weight.sum(1).clamp(min=1.0)


def pool_activations(hidden: torch.Tensor, pooled: torch.Tensor, sae: SparseAutoencoder) -> torch.Tensor:
    """Mean SAE activation over the pooled tokens: (B, T, d_model) and (B, T) bool to (B, d_sae).

    An SAE is trained on single tokens, so each token is encoded and the activations are pooled, never the other way
    round. One sequence at a time: (tokens, d_sae) is the largest tensor here.
    """
    rows = [sae.encode(hidden[i, pooled[i]].float()) for i in range(len(hidden))]  # each (tokens, d_sae)
    return torch.stack([row.sum(0) / max(len(row), 1) for row in rows])
