"""The frozen base model: cut it after one layer, and run it up to its residual stream there."""

import copy
import inspect

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .fields_sparserm import why
from .quantized_sparserm import adopt_quantizer, is_quantized

# Configuration fields with these endings are not per-layer lists, even if their length is the number of layers.
NOT_PER_LAYER = ("_id", "_ids", "_dtype")
# Field added to a configuration that cannot be cut: the configuration stays whole, and this number of layers is kept.
KEPT = "kept_layers"
TIES = ("_tied_weights_keys", "all_tied_weights_keys")  # attributes in which transformers lists tied weights


def check_layer(layer: int, depth: int) -> None:
    """Raise a ValueError unless `layer` is between 1 and the number of layers."""
    if not 1 <= layer <= depth:
        raise ValueError(f"Layer {layer} is out of range: the base model has layers 1 to {depth}.")


def cut_config(config: PretrainedConfig, layer: int) -> None:
    """Cut a base model's configuration, in place, to `layer` decoder layers.

    The change is in place because each decoder layer holds this object: a copy could name another attention
    implementation than the layers use.

    Raises:
        ValueError: `layer` is not between 1 and the number of layers.
    """
    depth = config.num_hidden_layers
    check_layer(layer, depth)
    fields = vars(config)  # written without transformers' checks, which compare fields: only some are cut yet
    for name, value in list(fields.items()):
        # Per-layer lists such as `layer_types`, and strings with a letter for each layer.
        per_layer = isinstance(value, list) or (isinstance(value, str) and name.endswith("_pattern"))
        if per_layer and len(value) == depth and not name.startswith("_") and not name.endswith(NOT_PER_LAYER):
            fields[name] = value[:layer]
    # GPT-Neo lists the kinds of its layers, and how often they are repeated.
    if "attention_types" in fields and "attention_layers" in fields:
        fields["attention_types"] = [[fields["attention_layers"], 1]]
    name = (getattr(config, "attribute_map", None) or {}).get("num_hidden_layers", "num_hidden_layers")
    if name in fields:
        fields[name] = layer
    else:
        config.num_hidden_layers = layer


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the decoder of a causal or a vision-language model, or of a decoder itself."""
    decoder = model.base_model  # transformers 4 needs it for GPT-2
    while True:
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
        inner = getattr(inner, "model", inner)  # Llama 4 returns its language model as the decoder
        if inner is decoder or not isinstance(inner, PreTrainedModel):
            return decoder
        decoder = inner


def decoder_layers_name(decoder: PreTrainedModel) -> str:
    """Find the name of a decoder's list of layers: the only list with as many modules as the configuration has layers.

    Raises:
        ValueError: There is no such list, or more than one.
    """
    depth = getattr(decoder.config, "num_hidden_layers", None)
    lists = {name: len(child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)}
    lengths = (depth, getattr(decoder.config, KEPT, None))  # before and after layers were dropped
    found = next(filter(None, ([name for name in lists if lists[name] == length] for length in lengths)), [])
    if len(found) != 1:
        raise ValueError(
            f"{type(decoder).__name__} is not an architecture that SparseRM can cut: it looked for one list of "
            f"{depth} decoder layers and found {', '.join(found) or 'none'}."
        )
    return found[0]


def decoder_layers(decoder: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a decoder, the first one first.

    Raises:
        ValueError: The layers are not found.
    """
    return getattr(decoder, decoder_layers_name(decoder))


def check_layers(decoder: PreTrainedModel, layer: int) -> None:
    """Raise a ValueError unless a cut decoder has `layer` layers."""
    if (depth := len(decoder_layers(decoder))) != layer:
        raise ValueError(
            f"The base model in the checkpoint has {depth} layers, but the configuration says layer {layer}: the "
            "checkpoint was changed after it was saved. Save or download it anew."
        )


def final_norm_name(decoder: PreTrainedModel) -> str | None:
    """Find the name of a decoder's final norm.

    It is the only norm of the residual stream's width, or the only such norm without `emb` in its name.

    Returns:
        The name; None if the decoder has no norm.

    Raises:
        ValueError: The decoder has more than one such norm.
    """
    found = []
    for name, child in decoder.named_children():
        widths = {len(weight) for weight in child.parameters(recurse=False)}  # Gemma 4 has a narrow norm as well
        if "norm" in type(child).__name__.casefold() and widths <= {decoder.config.hidden_size}:
            found.append(name)
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
        # transformers 4 runs Gemma 2 with sdpa, which silently omits the softcapping; transformers 5 does not.
        model.set_attn_implementation("eager")
    return model


def prepare_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Make a decoder, in place, return its residual stream: drop layers and the final norm, use exact attention."""
    use_exact_attention(model)
    if kept := getattr(model.config, KEPT, None):
        name = decoder_layers_name(model)
        setattr(model, name, getattr(model, name)[:kept])
        names, ties = set(model.state_dict()), vars(model).get("all_tied_weights_keys") or {}
        if ties and not names.issuperset(ties):  # Zamba ties layers of one kind, of which some were dropped
            model.all_tied_weights_keys = {one: other for one, other in ties.items() if one in names}
            model._tied_weights_keys = model.all_tied_weights_keys
    if norm := final_norm_name(model):
        setattr(model, norm, nn.Identity())
    return model


def backbone_from_config(config: PretrainedConfig) -> PreTrainedModel:
    """Build the cut base model of a checkpoint, without its weights.

    Raises:
        ValueError: No model can be built from the configuration.
    """
    try:
        return _build_backbone(copy.deepcopy(config))
    except ValueError:
        raise
    except Exception as error:  # such as a division by zero heads, or an unknown activation
        raise ValueError(f"No base model can be built from its configuration: {why(error)}") from error


def _build_backbone(config: PretrainedConfig) -> PreTrainedModel:
    # Without its data type: transformers 4 would prefer it to the type that `from_pretrained` asks for.
    for name in ("dtype", "torch_dtype"):
        if name in vars(config):
            setattr(config, name, None)
    if type(config) in transformers.MODEL_MAPPING:
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    else:  # such as the text side of Llama 3.2 Vision
        model = getattr(transformers, config.architectures[0])._from_config(config)
    return prepare_backbone(decoder_of(model))


def cut_base_model(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Cut a base model, in place, so that its output is the residual stream after `layer` layers.

    The output then equals `hidden_states[layer]` of the whole model for every layer but the last, after which the
    whole model applies its final norm. The configuration is cut as well, unless a model built from the cut
    configuration would have other layers. Gemma 4 is such a case: its last layer always attends to all tokens.

    Raises:
        ValueError: `layer` is out of range, the layers or the final norm are not found, or the configuration builds
            other layers.
    """
    decoder = decoder_of(model)
    config, layers = decoder.config, decoder_layers(decoder)
    check_layer(layer, len(layers))
    setattr(decoder, decoder_layers_name(decoder), layers[:layer])
    config.architectures = [type(decoder).__name__]
    adopt_quantizer(decoder, model)
    whole = copy.deepcopy(vars(config))
    vars(config).pop(KEPT, None)
    cut_config(config, layer)
    try:
        again = rebuilt(prepare_backbone(decoder))
    except ValueError:
        vars(config).clear()
        vars(config).update(whole, **{KEPT: layer})
        again = rebuilt(decoder)
    for name in TIES:
        if name in vars(again):
            setattr(decoder, name, vars(again)[name])
    return decoder


def rebuilt(decoder: PreTrainedModel) -> PreTrainedModel:
    """Build a cut decoder anew from its configuration, without weights, as loading a checkpoint does.

    Raises:
        ValueError: The new decoder differs: a checkpoint would give other rewards, or not load at all.
    """
    kind, config = f"{type(decoder).__name__} cannot be cut", decoder.config
    try:
        with torch.device("meta"):
            again = backbone_from_config(type(config).from_dict(config.to_dict()))
    except Exception as error:  # the code of an architecture may raise anything
        raise ValueError(
            f"{kind}: no model can be built from its configuration ({' '.join(str(error).split())[:200]})."
        ) from error
    if is_quantized(decoder):  # packed weights have other names and shapes
        made, built = ({(name, None) for name, _ in model.named_modules()} for model in (decoder, again))
    else:
        made, built = ({(k, tuple(x.shape)) for k, x in model.state_dict().items()} for model in (decoder, again))
    if different := sorted(made ^ built):
        raise ValueError(f"{kind}: its configuration builds other weights, such as {different[0][0]!r}.")
    for name, module in again.named_modules():
        here = vars(decoder.get_submodule(name))
        for key, value in vars(module).items():  # such as a scale that depends on the number of layers
            plain = isinstance(value, float) or (name and key != "training" and isinstance(value, (bool, int, str)))
            if plain and here.get(key, value) != value:
                raise ValueError(f"{kind}: its layers depend on how many there are ({name}.{key}).")
    return again


def residual_stream(
    base_model: PreTrainedModel,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor,
    inputs_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the cut base model: (B, T) token ids to the (B, T, d_model) residual stream after its last layer.

    Positions count attended tokens only. Left padding is moved to the right, where it cannot change the text's tokens:
    on the left it would enter the recurrent state of RWKV, and in transformers 4 that of Mamba 2 for a single text.
    """
    mask = attention_mask.long()
    padding = mask.argmax(-1, keepdim=True)  # (B, 1) number of pad tokens on the left
    moved = bool(padding.any())
    if moved:
        index = torch.arange(mask.shape[1], device=mask.device)
        there, back = (index + padding) % mask.shape[1], (index - padding) % mask.shape[1]  # (B, T)
        mask = mask.gather(1, there)
        input_ids = None if input_ids is None else take_tokens(input_ids, there)
        inputs_embeds = None if inputs_embeds is None else take_tokens(inputs_embeds, there)
    positions: dict[str, torch.Tensor] = {}
    taken = inspect.signature(base_model.forward).parameters
    # Mamba in transformers 4 takes no positions. A wrapper such as FSDP takes **kwargs and passes them on.
    if "position_ids" in taken or any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        positions["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = base_model(
        input_ids=input_ids,
        inputs_embeds=inputs_embeds,
        attention_mask=mask,
        use_cache=False,
        return_dict=True,
        **positions,
    ).last_hidden_state
    return take_tokens(hidden, back) if moved else hidden


def take_tokens(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Take the values (B, T, ...) of each row at the places (B, T) in the row."""
    places = places.to(values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], places]
