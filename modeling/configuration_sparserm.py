"""Configuration of a SparseRM reward model."""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, __version__

from .fields_sparserm import OLD_LATENT_KINDS, check_base_fields, check_fields, short, why
from .latents_sparserm import as_latents, as_records, changed_latents
from .response_sparserm import MARKS

AUTO_MAP = {
    "AutoConfig": "configuration_sparserm.SparseRMConfig",
    "AutoModel": "modeling_sparserm.SparseRMForSequenceClassification",
    "AutoModelForSequenceClassification": "modeling_sparserm.SparseRMForSequenceClassification",
}


DEFAULTS: dict[str, Any] = {
    "base_model_name_or_path": "",
    "base_model_revision": None,
    "layer": 0,
    "pooling": "response_mean",
    "response_marks": None,
    "response_marker_ids": [],
    "representation_norm": "rms",
    "directions": "raw",
    "k_accuracies": {},
    "head_type": "linear",
    "head_hidden_size": 512,
    "sae": None,
    "sae_source": {},
    "reward_mean": 0.0,
    "reward_std": 1.0,
    "reward_temperature": 1.0,
    "adapter_rank": 0,
    "ensemble": 0,
    "pessimism": 0.0,
    "objectives": [],
    "gate": False,
    "slim": False,
    "run_dtype": None,
    "weights_digest": None,
}
INHERITED_DEFAULTS: dict[str, Any] = {
    "num_labels": 1,
    "id2label": {0: "reward"},
    "label2id": {"reward": 0},
    "problem_type": "regression",  # otherwise the text-classification pipeline puts the reward through a sigmoid
    "auto_map": AUTO_MAP,
}

BEFORE_TRANSFORMERS_5 = int(__version__.split(".")[0]) < 5
LEGACY_ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_local_base_freq")


def legacy_rope_fields(base: dict[str, Any]) -> dict[str, Any]:
    """Make the fields that transformers 4 expects instead of transformers 5's `rope_parameters`.

    Without them transformers 4 silently uses its defaults, and the reward of every text of several tokens is wrong.

    Args:
        base: A base model's configuration as a dict.
    """
    rope = base.get("rope_parameters") or {}
    local = rope.get("sliding_attention") or {}
    rope = rope.get("full_attention", rope) or {}
    if "rope_theta" not in rope:
        return {}
    theta, fraction = rope["rope_theta"], rope.get("partial_rotary_factor", 1.0)
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if base["model_type"] == "phi3":  # Phi-3 refuses a configuration with other keys than these three
        scaling = {key: scaling[key] for key in ("rope_type", "short_factor", "long_factor") if key in scaling}
        scaling["type"] = scaling.pop("rope_type", "default")
    fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    if scaling in ({}, {"rope_type": "default"}, {"type": "default"}):
        fields["rope_scaling"] = None
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = fraction
    if base["model_type"] == "gpt_neox":
        fields |= {"rotary_emb_base": theta, "rotary_pct": fraction}
    if "rope_theta" in local:
        fields["rope_local_base_freq"] = local["rope_theta"]
    return fields


def plain_floats(value: Any) -> Any:
    """Replace the objects that transformers 5 writes for infinities by numbers, as transformers 4 expects."""
    if isinstance(value, dict):
        return float(value["__float__"]) if "__float__" in value else {k: plain_floats(v) for k, v in value.items()}
    return [plain_floats(item) for item in value] if isinstance(value, list) else value


def base_config_from(fields: dict[str, Any]) -> PretrainedConfig:
    """Make the configuration of a base model from the fields in a file.

    Raises:
        ValueError: transformers does not know the model type, or the fields do not fit it.
    """
    check_base_fields(fields)
    kind = fields["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"base_config has the model_type {short(kind)}, which transformers {__version__} does not know."
        )
    fields = plain_floats(fields)
    if fields.get("rope_parameters") and not BEFORE_TRANSFORMERS_5:
        # These fields were written for transformers 4; transformers 5 would let them override `rope_parameters`.
        fields = {name: value for name, value in fields.items() if name not in LEGACY_ROPE_FIELDS}
    try:
        return CONFIG_MAPPING[kind](**fields)
    except Exception as error:  # the code of a configuration class may raise anything
        raise ValueError(f"base_config is not the configuration of a {kind} model: {why(error)}") from error


def refuse_other_features(readings: list[str] | None) -> None:
    """Refuse a checkpoint whose features are not projections; the field `readings` existed until version 0.3.

    Raises:
        ValueError: The features are not projections.
    """
    if readings and readings != ["mean_projection"]:
        raise ValueError(
            f"This checkpoint was trained before version 0.3 with {', '.join(readings)} of its latents as features, "
            "but since then a feature is a projection: load it with sparserm-hf 0.2, or train it anew."
        )


def inherited_from(base_config: PretrainedConfig, slim: bool) -> dict[str, Any]:
    """Collect the fields of a base model that trainers look for in the reward model's configuration."""
    names = ("hidden_size", "vocab_size", "tie_word_embeddings", "max_position_embeddings")
    names += ("pad_token_id", "bos_token_id", "eos_token_id")
    inherited = {name: getattr(base_config, name, None) for name in names}
    if not slim and hasattr(base_config, "quantization_config"):  # transformers reads it from the outer config
        inherited["quantization_config"] = base_config.quantization_config
    return inherited


class SparseRMConfig(PretrainedConfig):
    """Configuration of a SparseRM reward model.

    Args:
        base_config: Configuration of the base model, already cut after `layer`. It is not named `text_config`:
            trainers write `pad_token_id` to `get_text_config()`, which must be this configuration itself.
        latents: The selected latents, those for the chosen side first: `Latent` objects, or their records.
        base_model_name_or_path: Hub id or folder of the base model.
        base_model_revision: Commit of the base model on the Hub.
        layer: Number of decoder layers that are kept. The residual stream after the last of them is pooled.
        pooling: `last`, `mean` or `response_mean`.
        response_marks: Token ids that the chat template writes around responses, with an entry for each name in
            ``response_sparserm.MARKS``. None in a checkpoint of version 0.1, which has `response_marker_ids`.
        response_marker_ids: Token ids of the chat template's assistant header, in a checkpoint of version 0.1.
        representation_norm: `rms` divides each token by its root mean square before pooling; `none` does not.
        directions: `orthogonal` projects on the orthonormal directions that are closest to the decoder directions of
            the selected latents. `raw` projects on these decoder directions, as do the paper and every checkpoint
            before version 0.3.
        k_accuracies: Cross-validated accuracy by number of latents on each side; empty if the user gave this number.
        head_type: `linear` or `mlp`.
        head_hidden_size: Width of the hidden layer of the `mlp` head.
        sae: Arguments of `SparseAutoencoder` for the embedded SAE. None in a slim checkpoint.
        sae_source: Origin of the SAE: source, release, sae_id, repo, revision, hook_name, neuronpedia_id.
        reward_mean: Mean reward of the training responses.
        reward_std: Standard deviation of the rewards of the training responses.
        reward_temperature: sigmoid((reward difference) / reward_temperature) is the probability that a response is
            preferred. Not named `temperature`, which transformers takes for a setting of generation.
        adapter_rank: Rank of the LoRA adapter that was trained and merged into the base model; 0 without one.
        ensemble: Number of heads in the ensemble, which are fitted on bootstrap samples of the prompts; 0 for none.
        pessimism: Number of standard deviations over these heads that are taken from each reward.
        objectives: In a combined reward model, a record for each objective: its `name`, its `weight` in the reward,
            and `reward_mean` and `reward_std` of the objective's own rewards. Empty in any other reward model.
        gate: Whether a combined reward model has a gate, which tells by the prompt how much each objective counts.
        slim: Whether the checkpoint leaves the base model out; it is then loaded from `base_model_name_or_path`.
        run_dtype: Data type that the base model ran in when the head was trained, `float32` or `bfloat16`; its weights
            may be saved in another type, without loss.
        weights_digest: Sums of the weights that were saved with the configuration, see ``weights_sparserm.digest_of``.

    Raises:
        ValueError: A field has a value that ``fields_sparserm.FIELDS`` does not allow, `response_marks` lacks an
            entry, `base_config` is not a configuration, or the features of the checkpoint are not projections.

    Example:
        >>> config = SparseRMConfig(layer=18, latents=[{"id": 7, "side": "chosen"}, {"id": 3, "side": "rejected"}])
        >>> config.latent_ids, config.latents[1].side
        ([7, 3], 'rejected')
    """

    model_type = "sparserm"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    # Otherwise a trainer's predictions would no longer be `logits` alone.
    keys_to_ignore_at_inference = ["rewards", "standard_deviation", "shares"]  # noqa: RUF012
    _auto_class = "AutoConfig"

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        latents: list[Any] | None = None,
        **kwargs: Any,
    ):
        check_fields(kwargs)
        refuse_other_features(kwargs.pop("readings", None))
        marks = kwargs.get("response_marks")
        if marks is not None and set(marks) != set(MARKS):
            raise ValueError(f"response_marks has {sorted(marks)}, but must have {', '.join(MARKS)}.")
        self.latents = as_latents(latents, {name: kwargs.pop(name, None) for name in OLD_LATENT_KINDS})
        if base_config is not None and not isinstance(base_config, PretrainedConfig):
            base_config = base_config_from(base_config)
        # A copy: setting the attention implementation of this configuration also sets that of `base_config`. If that
        # were the configuration of a running base model, the model would no longer mask its padding.
        self.base_config = copy.deepcopy(base_config)
        for name, default in DEFAULTS.items():
            given = kwargs.pop(name, None)
            setattr(self, name, copy.copy(default) if given is None else given)
        if len(set(self.objective_names)) < len(self.objectives):
            raise ValueError(f"objectives has a name twice: {', '.join(self.objective_names)}.")
        if (self.objectives or self.ensemble) and self.head_type != "linear":
            raise ValueError(f"head_type is {self.head_type}, but objectives and an ensemble need a linear head.")
        if self.gate and len(self.objectives) < 2:
            raise ValueError(f"gate is true, but there are {len(self.objectives)} objectives: a gate needs several.")
        if self.pessimism and not self.ensemble:
            raise ValueError(f"pessimism is {self.pessimism}, but without an ensemble it must be 0: train with one.")
        self.k_accuracies = dict(sorted(self.k_accuracies.items(), key=lambda item: int(item[0])))
        inherited = inherited_from(base_config, self.slim) if base_config is not None else {}
        super().__init__(**(INHERITED_DEFAULTS | inherited | kwargs))

    @property
    def latent_ids(self) -> list[int]:
        """Ids of the selected latents in the SAE, in the order of the features."""
        return [latent.id for latent in self.latents]

    @property
    def objective_names(self) -> list[str]:
        """Names of the objectives of a combined reward model."""
        return [objective["name"] for objective in self.objectives]

    @property
    def steering(self) -> dict[int, float]:
        """Factors of the steered latents, by id."""
        return {latent.id: latent.steering for latent in self.latents if latent.steering != 1.0}

    def change_latents(self, **changes: dict[int, Any]) -> None:
        """Change a field of some latents, in place.

        Args:
            changes: For each field to change, the new values by latent id.

        Raises:
            ValueError: A latent is not selected, or a value is of the wrong kind.

        Example:
            >>> config = SparseRMConfig(latents=[{"id": 7}])
            >>> config.change_latents(label={7: "starts with Sure"}, steering={7: 0.0})
            >>> config.latents[0].title, config.steering
            ('starts with Sure', {7: 0.0})
        """
        self.latents = changed_latents(self.latents, changes)

    def latent_link(self, latent: int) -> str | None:
        """Return the address of the latent's page on Neuronpedia; None if the SAE is not published there."""
        known = self.sae_source.get("neuronpedia_id")
        return f"https://www.neuronpedia.org/{known}/{latent}" if known else None

    def to_dict(self) -> dict[str, Any]:
        """Turn the configuration into a dictionary that transformers 4 and 5 both read."""
        output = super().to_dict()
        output["latents"] = as_records(self.latents)
        if not self.gate:
            output.pop("gate", None)  # without a gate, config.json is the same as in earlier versions
        if isinstance(output.get("base_config"), dict):
            base = output["base_config"]
            base |= legacy_rope_fields(base)
            # Under every alias of a field, as transformers 4 may know a field by another name than transformers 5.
            for alias, name in (getattr(self.base_config, "attribute_map", None) or {}).items():
                if name in base:
                    base.setdefault(alias, base[name])
            base.pop("_name_or_path", None)  # a folder of the machine that trained the model
            base.pop("_pre_quantization_dtype", None)
        output.pop("_pre_quantization_dtype", None)  # transformers 4 keeps a torch.dtype there, which JSON cannot hold
        return output
