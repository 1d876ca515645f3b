"""Configuration of a SparseRM reward model."""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, __version__

from .fields_sparserm import check_base_fields, check_fields, short, why
from .response_sparserm import MARKS

CLEAR_F1, CLEAR_PRECISION = 0.1, 0.2  # below, a name says hardly anything of where its latent fires

AUTO_MAP = {
    "AutoConfig": "configuration_sparserm.SparseRMConfig",
    "AutoModel": "modeling_sparserm.SparseRMForSequenceClassification",
    "AutoModelForSequenceClassification": "modeling_sparserm.SparseRMForSequenceClassification",
}


BEFORE_TRANSFORMERS_5 = int(__version__.split(".")[0]) < 5
LEGACY_ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_local_base_freq")


def legacy_rope_fields(base: dict[str, Any]) -> dict[str, Any]:
    """The fields in which transformers 4 looks for what transformers 5 keeps in `rope_parameters`.

    Without them transformers 4 silently takes its own defaults, and every score of more than one token is wrong.

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
    if base["model_type"] == "phi3":  # checks that exactly these three are there
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
    """Infinities, which transformers 5 writes as objects that transformers 4 does not read, as numbers."""
    if isinstance(value, dict):
        return float(value["__float__"]) if "__float__" in value else {k: plain_floats(v) for k, v in value.items()}
    return [plain_floats(item) for item in value] if isinstance(value, list) else value


def base_config_from(fields: dict[str, Any]) -> PretrainedConfig:
    """Make the configuration of a base model from what a file says of it.

    Raises:
        ValueError: It is of no kind that transformers knows, or its fields are not those of that kind.
    """
    check_base_fields(fields)
    kind = fields["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"base_config has the model_type {short(kind)}, which transformers {__version__} does not know."
        )
    fields = plain_floats(fields)
    if fields.get("rope_parameters") and not BEFORE_TRANSFORMERS_5:
        # Written for transformers 4; transformers 5 would take them for its own.
        fields = {name: value for name, value in fields.items() if name not in LEGACY_ROPE_FIELDS}
    try:
        return CONFIG_MAPPING[kind](**fields)
    except Exception as error:  # whatever a kind of configuration does with fields of other kinds
        raise ValueError(f"base_config is not the configuration of a {kind} model: {why(error)}") from error


class SparseRMConfig(PretrainedConfig):
    """Everything that a SparseRM model is, but its weights.

    Args:
        base_config: Configuration of the base model, already cut after `layer`. Not named `text_config`: trainers
            write `pad_token_id` through `get_text_config()`, and it must land here, at the top.
        base_model_name_or_path: Hub id or folder of the base model.
        base_model_revision: Commit of the base model on the Hub that the model was trained on.
        layer: Decoder layers that are kept; the residual stream after the last of them is read.
        pooling: `last`, `mean` or `response_mean`.
        response_marks: What the chat template writes around responses, as token ids: one entry for each of
            ``response_sparserm.MARKS``. None in a checkpoint of version 0.1, which has `response_marker_ids`.
        response_marker_ids: Token ids of the chat template's assistant header, in a checkpoint of version 0.1.
        representation_norm: `rms` divides each token by its root mean square before pooling; `none` does not.
        latents: Ids, in the SAE, of the selected latents, those that fire more on chosen responses first.
        directions: What the features are projections on. `orthogonal`: the orthonormal directions that are closest to
            the decoder directions of the selected latents. `raw`: these decoder directions themselves, as in the
            paper and in every checkpoint before version 0.3.
        latent_sides: For each selected latent, `chosen` or `rejected`: the side that it was selected for.
        latent_separations: For each selected latent, its share of chosen minus its share of rejected responses.
        latent_stabilities: For each selected latent, the share of cross-validation folds that select it for its side,
            or None where that is not known.
        latent_purities: For each selected latent, the cosine between its direction and its decoder direction.
        latent_names: For each selected latent, a name made from what it fires on, with how well the name predicts the
            firing on held-out responses: `name`, `precision`, `recall`, `f1`; None where there is none.
        latent_descriptions: What the SAE's publisher says of a latent, by its id as a string.
        k_accuracies: Cross-validated accuracy by number of latents on either side, where that number was chosen.
        head_type: `linear` or `mlp`.
        head_hidden_size: Width of the hidden layer of the `mlp` head.
        sae: Shape of the embedded SAE: the arguments of `SparseAutoencoder`. None where it holds none.
        sae_source: Where the SAE came from: source, release, sae_id, repo, revision, hook_name, neuronpedia_id.
        reward_mean: Mean reward of the training responses.
        reward_std: Standard deviation of the reward over the training responses.
        reward_temperature: sigmoid((reward difference) / reward_temperature) is the probability that a response is
            preferred. Not named `temperature`: transformers takes that for a setting of generation.
        latent_promotes: For each selected latent, words that its direction promotes, by the base model's unembedding.
        latent_suppresses: Words that it suppresses.
        latent_labels: What the user calls a latent, by its id as a string.
        steering: Factor for each steered latent, by its id as a string: the distance of its features from their
            training mean is multiplied by it. 0 drops the latent.
        slim: Whether the checkpoint leaves out the base model, to be loaded from `base_model_name_or_path`.
        run_dtype: Type that the base model ran in when the head was trained, `float32` or `bfloat16`; its weights may
            be saved in another one, without loss.
        weights_digest: Sums of the weights that were saved with it, see ``weights_sparserm.digest_of``.

    Raises:
        ValueError: A field is of another kind than ``fields_sparserm.FIELDS`` says, marks that are not those of
            ``MARKS``, a `base_config` that is none, or a checkpoint whose features are not projections alone.
    """

    model_type = "sparserm"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012
    _auto_class = "AutoConfig"

    def __init__(
        self,
        base_config: PretrainedConfig | dict[str, Any] | None = None,
        base_model_name_or_path: str = "",
        base_model_revision: str | None = None,
        layer: int = 0,
        pooling: str = "response_mean",
        response_marks: dict[str, Any] | None = None,
        response_marker_ids: list[int] | None = None,
        representation_norm: str = "rms",
        latents: list[int] | None = None,
        directions: str = "raw",
        latent_sides: list[str] | None = None,
        latent_separations: list[float] | None = None,
        latent_stabilities: list[float | None] | None = None,
        latent_purities: list[float] | None = None,
        latent_names: list[dict[str, Any] | None] | None = None,
        latent_descriptions: dict[str, str] | None = None,
        k_accuracies: dict[str, float] | None = None,
        head_type: str = "linear",
        head_hidden_size: int = 512,
        sae: dict[str, Any] | None = None,
        sae_source: dict[str, Any] | None = None,
        reward_mean: float = 0.0,
        reward_std: float = 1.0,
        reward_temperature: float = 1.0,
        latent_promotes: list[list[str]] | None = None,
        latent_suppresses: list[list[str]] | None = None,
        latent_labels: dict[str, str] | None = None,
        steering: dict[str, float] | None = None,
        slim: bool = False,
        run_dtype: str | None = None,
        weights_digest: dict[str, dict[str, str]] | None = None,
        **kwargs: Any,
    ):
        check_fields({**locals(), **kwargs})
        readings = kwargs.pop("readings", None) or ["mean_projection"]  # a field until version 0.3
        if readings != ["mean_projection"]:
            raise ValueError(
                f"This checkpoint was trained before version 0.3 to read {', '.join(readings)} of its latents; since "
                "then a feature is a projection. Load it with sparserm-hf 0.2, or train it anew."
            )
        if response_marks is not None and set(response_marks) != set(MARKS):
            raise ValueError(f"response_marks has {sorted(response_marks)}, but must have {', '.join(MARKS)}.")
        if base_config is not None and not isinstance(base_config, PretrainedConfig):
            base_config = base_config_from(base_config)
        if base_config is not None:
            # A copy: setting this configuration's attention implementation sets that of `base_config` too, and a
            # running base model whose own configuration changed under it would mask its padding no longer.
            base_config = copy.deepcopy(base_config)
            for name in ("hidden_size", "vocab_size", "tie_word_embeddings", "max_position_embeddings"):
                kwargs.setdefault(name, getattr(base_config, name, None))
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                kwargs.setdefault(name, getattr(base_config, name, None))
            if not slim and hasattr(base_config, "quantization_config"):  # where transformers looks for it
                kwargs.setdefault("quantization_config", base_config.quantization_config)
        kwargs.setdefault("num_labels", 1)
        kwargs.setdefault("id2label", {0: "reward"})
        kwargs.setdefault("label2id", {"reward": 0})
        # Otherwise the text-classification pipeline puts the reward through a sigmoid.
        kwargs.setdefault("problem_type", "regression")
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        self.base_config = base_config
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.layer = layer
        self.pooling = pooling
        self.response_marks = response_marks
        self.response_marker_ids = response_marker_ids or []
        self.representation_norm = representation_norm
        self.latents = latents or []
        self.directions = directions
        self.latent_sides = latent_sides or []
        self.latent_separations = latent_separations or []
        self.latent_stabilities = latent_stabilities or [None for _ in self.latents]
        self.latent_purities = latent_purities or [1.0 for _ in self.latents]
        self.latent_names = latent_names or [None for _ in self.latents]
        self.latent_descriptions = latent_descriptions or {}
        self.k_accuracies = dict(sorted((k_accuracies or {}).items(), key=lambda item: int(item[0])))
        self.head_type = head_type
        self.head_hidden_size = head_hidden_size
        self.sae = sae
        self.sae_source = sae_source or {}
        self.reward_mean = reward_mean
        self.reward_std = reward_std
        self.reward_temperature = reward_temperature
        self.latent_promotes = latent_promotes or [[] for _ in self.latents]
        self.latent_suppresses = latent_suppresses or [[] for _ in self.latents]
        self.latent_labels = latent_labels or {}
        self.steering = steering or {}
        self.slim = slim
        self.run_dtype = run_dtype
        self.weights_digest = weights_digest
        super().__init__(**kwargs)

    def latent_name(self, i: int) -> str:
        """The name of the i-th selected latent.

        It is the user's label, or else the description of the SAE's publisher, the tested name, the words that its
        direction promotes, or nothing.
        """
        given, tested, words = self._given_name(i), self.latent_names[i], self.latent_promotes[i][:3]
        if given or not tested:
            return given or (f"promotes {', '.join(words)}" if words else "")
        clear = tested["f1"] >= CLEAR_F1 and tested["precision"] >= CLEAR_PRECISION
        return tested["name"] if clear else f"unclear: {tested['name']}"

    def latent_name_f1(self, i: int) -> float | None:
        """How well the name of the i-th selected latent predicts its firing (F1); None if it was not tested."""
        tested = self.latent_names[i]
        return tested["f1"] if tested and not self._given_name(i) else None

    def _given_name(self, i: int) -> str | None:
        """What its user or the SAE's publisher calls the i-th selected latent."""
        latent = str(self.latents[i])
        return self.latent_labels.get(latent) or self.latent_descriptions.get(latent)

    def latent_link(self, latent: int) -> str | None:
        """A latent's page on Neuronpedia, where the SAE is there."""
        known = self.sae_source.get("neuronpedia_id")
        return f"https://www.neuronpedia.org/{known}/{latent}" if known else None

    def to_dict(self) -> dict[str, Any]:
        """The configuration as transformers 4 and 5 both read it."""
        output = super().to_dict()
        if isinstance(output.get("base_config"), dict):
            base = output["base_config"]
            base |= legacy_rope_fields(base)
            # Under every name that a field has: the one that transformers 5 keeps may not be that of transformers 4.
            for alias, name in (getattr(self.base_config, "attribute_map", None) or {}).items():
                if name in base:
                    base.setdefault(alias, base[name])
            base.pop("_name_or_path", None)  # a folder of the machine that it was trained on
            base.pop("_pre_quantization_dtype", None)
        output.pop("_pre_quantization_dtype", None)  # of transformers 4: JSON has no form for it
        return output
