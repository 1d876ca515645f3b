"""A reward model during its training, and its evaluation beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from ..conversations import ChatEncoder, TokenizedPreferences, TokenizedText, measure_styles
from ..evaluation import (
    Control,
    Evaluation,
    RowName,
    check_claims,
    measure_attacks,
    reward_represented,
    reward_with_controls,
)
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Representations


@dataclass(frozen=True)
class TrainedModel:
    """A reward model during its training.

    Attributes:
        model: The reward model.
        base_model: The cut base model in the data type that it runs in, which may differ from the saved data type.
        represent: Function that represents texts with that base model.
    """

    model: SparseRMForSequenceClassification
    base_model: PreTrainedModel
    represent: Callable[[list[TokenizedText]], Representations]

    def rewards(self, texts: list[TokenizedText]) -> np.ndarray:
        """Compute the (N,) rewards of texts."""
        return reward_represented(self.model, self.represent(texts))

    def evaluate(
        self,
        controls: Sequence[Control],
        pairs: TokenizedPreferences,
        encoder: ChatEncoder,
        frozen: TrainedModel | None = None,
    ) -> Evaluation:
        """Evaluate the reward model beside its controls.

        Args:
            controls: The controls; they read the frozen base model.
            pairs: Preference pairs.
            encoder: Encoder of the pairs.
            frozen: The reward model without its adapter; None if there is no adapter.
        """
        beside, latents = frozen or self, self.model.config.latent_ids
        represented = beside.represent(pairs.texts)
        rewards = reward_with_controls(beside.model, controls, represented, pairs.lengths, latents)
        if frozen:
            without = rewards.pop(RowName.REWARD_MODEL)
            rewards = {RowName.REWARD_MODEL: self.rewards(pairs.texts), RowName.FROZEN: without, **rewards}
        return Evaluation(
            margins={name: r[pairs.chosen] - r[pairs.rejected] for name, r in rewards.items()},
            styles=measure_styles(pairs, encoder.tokenizer),
            temperature=self.model.config.reward_temperature,
            attacks=tuple(measure_attacks(pairs, encoder, self.rewards)),
            claims=check_claims(self.model, self.base_model, pairs),
        )
