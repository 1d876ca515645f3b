"""The frozen base model: cut it after one layer, run it, pool its residual stream to one vector per sequence."""

import copy
import inspect

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .fields_sparserm import why
from .quantized_sparserm import adopt_quantizer, is_quantized

# Fields of a configuration that end so are no per-layer lists, however long they are.
NOT_PER_LAYER = ("_id", "_ids", "_dtype")
# Field of a configuration that cannot be cut: it stays whole, and this many of its layers are kept.
KEPT = "kept_layers"
TIES = ("_tied_weights_keys", "all_tied_weights_keys")  # where transformers notes which weights of a model are one


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
    """Return the decoder of a causal or a vision-language model, or of a decoder itself."""
    decoder = model.base_model  # transformers 4 needs it for GPT-2
    while True:
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
        inner = getattr(inner, "model", inner)  # Llama 4 gives its language model for its decoder
        if inner is decoder or not isinstance(inner, PreTrainedModel):
            return decoder
        decoder = inner


def decoder_layers_name(decoder: PreTrainedModel) -> str:
    """Find the name of a decoder's list of layers: its only list as long as its configuration says.

    Raises:
        ValueError: There is none, or more than one.
    """
    depth = getattr(decoder.config, "num_hidden_layers", None)
    lists = {name: len(child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)}
    lengths = (depth, getattr(decoder.config, KEPT, None))  # before and after all but some are dropped
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
        ValueError: They are not found.
    """
    return getattr(decoder, decoder_layers_name(decoder))


def check_layers(decoder: PreTrainedModel, layer: int) -> None:
    """Raise a ValueError unless a decoder that is cut ends after `layer` layers."""
    if (depth := len(decoder_layers(decoder))) != layer:
        raise ValueError(
            f"The base model in the checkpoint has {depth} layers, but its configuration reads layer {layer}: it was "
            "changed after it was saved. Save or download it anew."
        )


def final_norm_name(decoder: PreTrainedModel) -> str | None:
    """Find the name of a decoder's final norm.

    It is the only norm of the residual stream's width, or the only one that is not called after the embedding.

    Returns:
        The name; None where the decoder has no norm.

    Raises:
        ValueError: It has more than one.
    """
    found = []
    for name, child in decoder.named_children():
        widths = {len(weight) for weight in child.parameters(recurse=False)}  # Gemma 4 has a narrow one as well
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
        # transformers 4 runs Gemma 2 in sdpa, which silently leaves the softcapping out; transformers 5 does not.
        model.set_attn_implementation("eager")
    return model


def prepare_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Make a decoder, in place, put out its residual stream.

    Without the layers that are not kept, without the final norm, and with exact attention.
    """
    use_exact_attention(model)
    if kept := getattr(model.config, KEPT, None):
        name = decoder_layers_name(model)
        setattr(model, name, getattr(model, name)[:kept])
        names, ties = set(model.state_dict()), vars(model).get("all_tied_weights_keys") or {}
        if ties and not names.issuperset(ties):  # Zamba's first layer of a kind is tied to all others of it
            model.all_tied_weights_keys = {one: other for one, other in ties.items() if one in names}
            model._tied_weights_keys = model.all_tied_weights_keys
    if norm := final_norm_name(model):
        setattr(model, norm, nn.Identity())
    return model


def backbone_from_config(config: PretrainedConfig) -> PreTrainedModel:
    """Build the cut base model of a checkpoint, without its weights.

    Raises:
        ValueError: The configuration builds none.
    """
    try:
        return _build_backbone(copy.deepcopy(config))
    except ValueError:
        raise
    except Exception as error:  # such as a division by zero heads, or an activation that is not known
        raise ValueError(f"The configuration of the base model builds none: {why(error)}") from error


def _build_backbone(config: PretrainedConfig) -> PreTrainedModel:
    # Without its type, which comes before that of `from_pretrained`, and which transformers 4 keeps.
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

    The output then equals `hidden_states[layer]` of the whole model for every layer but the last, where the whole
    model applies its final norm first. Its configuration is cut as well, unless it would then build other layers: as
    Gemma 4 makes the last of any number of layers attend to all tokens.

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
    """Build a cut decoder from its configuration, without weights, as loading a checkpoint does.

    Raises:
        ValueError: It is another one: a checkpoint would have other rewards, or not load at all.
    """
    kind, config = f"{type(decoder).__name__} cannot be cut", decoder.config
    try:
        with torch.device("meta"):
            again = backbone_from_config(type(config).from_dict(config.to_dict()))
    except Exception as error:  # whatever an architecture does when it is built
        raise ValueError(f"{kind}: its configuration builds none ({' '.join(str(error).split())[:200]}).") from error
    if is_quantized(decoder):  # what packs its weights changes their names and shapes
        made, built = ({(name, None) for name, _ in model.named_modules()} for model in (decoder, again))
    else:
        made, built = ({(k, tuple(x.shape)) for k, x in model.state_dict().items()} for model in (decoder, again))
    if different := sorted(made ^ built):
        raise ValueError(f"{kind}: its configuration builds other weights, such as {different[0][0]!r}.")
    for name, module in again.named_modules():
        here = vars(decoder.get_submodule(name))
        for key, value in vars(module).items():  # such as a scale that depends on how many layers there are
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

    Positions count attended tokens only, and padding on the left is moved to the right, where no token sees it: a
    recurrent state would take it in, of RWKV in any case, of a Mamba 2 in transformers 4 where a text is alone.
    """
    mask = attention_mask.long()
    padding = mask.argmax(-1, keepdim=True)  # (B, 1) tokens on the left
    moved = bool(padding.any())
    if moved:
        index = torch.arange(mask.shape[1], device=mask.device)
        there, back = (index + padding) % mask.shape[1], (index - padding) % mask.shape[1]  # (B, T)
        mask = mask.gather(1, there)
        input_ids = None if input_ids is None else take_tokens(input_ids, there)
        inputs_embeds = None if inputs_embeds is None else take_tokens(inputs_embeds, there)
    positions: dict[str, torch.Tensor] = {}
    taken = inspect.signature(base_model.forward).parameters
    # A Mamba of transformers 4 takes none. What wraps a model, such as FSDP, takes whatever the model does.
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
    """Take from each row of (B, T, ...) values those at its places (B, T)."""
    places = places.to(values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], places]
