"""The SparseRM reward model: frozen base model, embedded sparse autoencoder (SAE), steering, reward head."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .autoencoder_sparserm import SparseAutoencoder
from .backbone_sparserm import backbone_from_config, residual_stream
from .configuration_sparserm import SparseRMConfig
from .explanation_sparserm import Explanation, RunTexts, explain_rewards, rewards_at_average, run_texts
from .further_heads_sparserm import HasFurtherHeads, HeadInput, RewardOutput
from .head_sparserm import HEADS
from .pooling_sparserm import pool_representations, pooled_tokens
from .predict_sparserm import ScoresConversations
from .pretrained_sparserm import SparseRMPreTrainedModel
from .response_sparserm import align_bos, find_responses, mask_from_padding

# isort: split
# From a local folder, transformers 4 copies only the files that this file imports directly.
from .fields_sparserm import FIELDS  # noqa: F401
from .latents_sparserm import Latent  # noqa: F401
from .messages_sparserm import plain_messages  # noqa: F401
from .quantized_sparserm import is_quantized  # noqa: F401
from .slim_sparserm import has_adapter  # noqa: F401
from .special_tokens_sparserm import SpecialTokens  # noqa: F401
from .text_sparserm import EncodedText  # noqa: F401
from .weights_sparserm import check_index  # noqa: F401

# Arguments that trainers and pipelines pass to `forward`, which does not need them.
IGNORED = (
    "cache_position",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
    "position_ids",
    "return_dict",
    "token_type_ids",
    "use_cache",
)


class SparseRMForSequenceClassification(ScoresConversations, HasFurtherHeads, SparseRMPreTrainedModel):
    """A reward model: a frozen base model, directions of a sparse autoencoder, and a small head.

    The method is SparseRM (AAAI 2026, arXiv 2511.07896). A feature is the projection of the average pooled token on
    the direction of a selected latent; by default the tokens of the response are pooled. With the linear
    head the reward is exactly `bias + sum of weight_i * feature_i`.

    Attributes:
        model: The base model, cut after `config.layer` layers. It is frozen and always in eval mode.
        sae: The embedded SAE; None in a slim checkpoint.
        directions: (K, d_model) directions of the selected latents: orthonormal, or the SAE's own decoder rows, see
            `config.directions`.
        feature_mean: (K,) mean of each feature over the training responses; steering scales the distance from it.
        empty_features: (K,) features that an empty response gets: those of the training response with the lowest
            reward. A checkpoint of version 0.1 has none; there an empty response gets `feature_mean`.
        score: The head.

    Example:
        ```python
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = AutoModelForSequenceClassification.from_pretrained("my-reward-model", trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained("my-reward-model")
        question = {"role": "user", "content": "What is the capital of Italy?"}
        print(model.predict([[question, {"role": "assistant", "content": "Rome."}]], tokenizer))
        ```
    """

    def __init__(self, config: SparseRMConfig, base_model: PreTrainedModel | None = None):
        super().__init__(config)
        if config.num_labels != 1:
            raise ValueError(f"num_labels is {config.num_labels}, but a reward model has one: leave num_labels out.")
        self._base_samples: dict[str, torch.Tensor] = {}
        if base_model is not None:
            self._attach(base_model)
        elif config.slim:
            # `from_pretrained` puts the base model here. Until then transformers 4 must not look for its weights.
            self.model = nn.Identity()
            self.base_model_prefix = ""
        else:
            self._attach(backbone_from_config(config.base_config))
        self.sae = SparseAutoencoder(**config.sae) if config.sae else None
        # In float32, whatever the type of the base model: a buffer is loaded in the type that it has here.
        k = len(config.latents)
        self.register_buffer("directions", torch.zeros((k, config.hidden_size or 0), dtype=torch.float32))
        self.register_buffer("feature_mean", torch.zeros(k, dtype=torch.float32))
        if config.response_marks is not None:
            self.register_buffer("empty_features", torch.zeros(k, dtype=torch.float32))
        self.score = HEADS[config.head_type](config)
        self.post_init()
        self.freeze()

    def _mask(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> torch.Tensor:
        if attention_mask is not None:
            return attention_mask
        if input_ids is None:
            raise ValueError("With inputs_embeds padding cannot be told from text: pass attention_mask.")
        return mask_from_padding(input_ids, self.config)

    def extract_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Turn texts into the features of their responses, (B, K) float32; see `head_input`."""
        return self.head_input(*args, **kwargs).features

    def head_input(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        responses: list[tuple[int, int]] | None = None,
    ) -> HeadInput:
        """Turn texts into the head's input: features, and with a gate the shares of the objectives.

        Args:
            input_ids: See `forward`.
            attention_mask: See `forward`.
            inputs_embeds: See `forward`.
            responses: Place of the response in each text, see `find_responses`. By default the texts get the
                begin-of-text tokens that they had in training, and the chat template's marks show the response.

        Raises:
            ValueError: See `forward`.
        """
        attention_mask = self._mask(input_ids, attention_mask)
        if responses is None and input_ids is not None:
            input_ids, attention_mask, responses = self.locate(input_ids, attention_mask)
        elif responses is None:
            if self.config.pooling == "response_mean" or self.config.gate:
                raise ValueError("The response and its prompt are found by their token ids: pass input_ids.")
            responses = [(0, length) for length in attention_mask.bool().sum(-1).tolist()]
        hidden = residual_stream(self.model, input_ids, attention_mask, inputs_embeds)  # (B, T, d_model)
        pooled = pooled_tokens(attention_mask, responses, self.config.pooling).to(hidden.device)
        prompt = self.average_prompt(hidden, input_ids, attention_mask, responses)
        return HeadInput(self.features_of(hidden, pooled), self.shares_of(prompt))

    def locate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
        """Give texts (B, T) the begin-of-text tokens that they had in training, and find their responses.

        Returns:
            Token ids and mask, see `align_bos`, and the place of the response in each text, see `find_responses`.
        """
        config = self.config
        if config.response_marks is not None:
            longest = getattr(config, "max_position_embeddings", None)
            input_ids, attention_mask = align_bos(
                input_ids, attention_mask, config.bos_token_id, config.response_marks, longest
            )
        return input_ids, attention_mask, find_responses(input_ids, attention_mask, config)

    def features_of(self, hidden: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Turn residual streams (B, T, d_model) and their pooled tokens (B, T) into features, (B, K) float32."""
        with torch.autocast(hidden.device.type, enabled=False):  # autocast would round to bfloat16
            mean = pool_representations(hidden, pooled, self.config.representation_norm)
            return self.project(mean, pooled.any(-1, keepdim=True))

    def project(self, mean: torch.Tensor, has_tokens: torch.Tensor, steered: bool = True) -> torch.Tensor:
        """Turn average tokens into the head's input features, (B, K).

        Args:
            mean: (B, d_model) average of each text's pooled tokens.
            has_tokens: (B, 1) bool, false for a text without pooled tokens, which gets `empty_features`.
            steered: Whether to apply the steering of the configuration.
        """
        features = mean @ self.directions.to(mean).T  # (B, K)
        average = self.feature_mean.to(features)
        if steered and self.config.steering:
            features = average + self.steering_factors().to(features) * (features - average)
        empty = average if self.config.response_marks is None else self.empty_features.to(features)  # never steered
        return torch.where(has_tokens, features, empty)

    def steering_factors(self) -> torch.Tensor:
        """Return the (K,) factors by which steering multiplies the features' distances from their training means."""
        factors = [latent.steering for latent in self.config.latents]
        return torch.tensor(factors, device=self.feature_mean.device)

    def steer(self, factors: dict[int, float]) -> None:
        """Drop (0), damp, boost or restore (1) latents, in place; other latents stay as they are.

        The factors are kept in the configuration, so a saved model is steered wherever it is loaded. A factor of 1
        undoes the steering of a latent.

        Args:
            factors: Factor of each latent to change, by its id.

        Raises:
            ValueError: A latent is not one of the model's, or a factor is not a number.
        """
        self.config.change_latents(steering={int(latent): factor for latent, factor in factors.items()})

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **ignored: Any,
    ) -> RewardOutput:
        """Score sequences.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), nonzero for tokens of the text. Without a mask, pad tokens at either end count as
                padding.
            inputs_embeds: (B, T, d_model) token embeddings, instead of `input_ids`.
            labels: (B,) or (B, 1) rewards that the texts should have; `loss` is then the mean squared error, as for
                any sequence classifier with one label.
            ignored: Further arguments that trainers pass, see ``IGNORED``, such as `use_cache` and `return_dict`.
                `position_ids` are always counted from the mask.

        Returns:
            `logits` of shape (B, 1): the rewards, in float32 under any autocast. With labels there is also `loss`. A
            combined reward model and an ensemble add further fields, see `RewardOutput`.

        Raises:
            TypeError: An argument is unknown, such as a misspelt one.
            ValueError: There is no mask, and padding cannot be told from text.
        """
        if unknown := [name for name in ignored if name not in IGNORED]:
            known = ", ".join(("input_ids", "attention_mask", "inputs_embeds", "labels", *IGNORED))
            raise TypeError(f"forward() does not know the argument {unknown[0]!r}; it knows {known}.")
        features, shares = self.head_input(input_ids, attention_mask, inputs_embeds)
        logits = self.reward(features, shares)
        loss = None
        if labels is not None:
            loss = nn.functional.mse_loss(logits[:, 0], labels.to(logits).view(-1))
        further = {"rewards": self.objective_rewards(features), "standard_deviation": self.reward_deviation(features)}
        return RewardOutput(loss=loss, logits=logits, shares=shares, **further)

    def explain(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Explanation:
        """Explain the rewards of texts (B, T), feature by feature and token by token; see `explain_rewards`."""
        mask = self._mask(input_ids, attention_mask)
        texts, added = self._run(input_ids, mask)
        found = explain_rewards(self, texts)
        names = ("token_contributions", "running_reward", "response")
        return found._replace(**{name: getattr(found, name)[:, added:] for name in names})

    def _run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[RunTexts, int]:
        """Run texts (B, T) through the base model; also return how many tokens were added in front, 0 or 1."""
        aligned_ids, aligned_mask, responses = self.locate(input_ids, attention_mask)
        return run_texts(self, aligned_ids, aligned_mask, responses), aligned_ids.shape[1] - input_ids.shape[1]

    def rewards_without(
        self, latents: list[int], input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the rewards of texts (B, T) with one latent at a time set to its average, (B, len(latents)).

        See `rewards_at_average`.
        """
        return rewards_at_average(self, latents, self._run(input_ids, self._mask(input_ids, attention_mask))[0])

    def extra_repr(self) -> str:
        """Summarise the model in one line, above its modules."""
        config = self.config
        base = config.base_model_name_or_path or "a base model"
        also = [text for text, holds in (("adapter", config.adapter_rank), ("slim", config.slim)) if holds]
        also += [f"objectives {', '.join(config.objective_names)}"] if config.objectives else []
        also += ["gate"] if config.gate else []
        return (
            f"{base} cut after layer {config.layer}, {config.pooling} pooling, {len(config.latents)} latents, "
            + ", ".join([f"{config.head_type} head", *also])
        )

    def to_slim(self) -> "SparseRMForSequenceClassification":
        """Return the model in its slim form, whose checkpoint holds only the head and the directions.

        Raises:
            ValueError: The base model was changed by an adapter, so loading it by its name would give other rewards.
        """
        if self.config.slim:
            return self
        if self.config.adapter_rank:
            raise ValueError("A slim checkpoint loads its base model by name, but an adapter has changed this one.")
        config = copy.deepcopy(self.config)
        config.slim = True
        config.sae = None
        if settings := config.__dict__.pop("quantization_config", None):
            config.base_config.quantization_config = settings
        slim = SparseRMForSequenceClassification(config, base_model=self.model)
        slim.directions = self.directions
        slim.feature_mean = self.feature_mean
        if config.response_marks is not None:
            slim.empty_features = self.empty_features
        slim.score = self.score
        return slim.eval()
