"""Load a saved reward model with its tokenizer and controls, and evaluate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..conversations import ChatEncoder, TokenizedPreferences, TokenizedText, measure_styles, tokenize_preferences
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Pooling, Representations, collect_representations
from ..runtime import default_cache_dir, process_state
from ..scoring import encoder_of, load_reward_model
from .controls import Control, check_controls, find_controls
from .evaluation import Evaluation
from .represented_rewards import evaluate_representations


@dataclass(frozen=True)
class SavedRewardModel:
    """A reward model that was loaded with its tokenizer and controls.

    Attributes:
        model: The reward model.
        tokenizer: Its tokenizer.
        controls: The controls that were saved beside it; empty if none were saved.
    """

    model: SparseRMForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    controls: list[Control]

    @classmethod
    def load(cls, name: str, dtype: str = "auto", revision: str | None = None) -> SavedRewardModel:
        """Load a checkpoint.

        Args:
            name: Folder or Hub id of the reward model.
            dtype: Data type of the base model; `auto` takes the type that training ran in.
            revision: Revision of the reward model on the Hub.

        Raises:
            SparseRMError: The checkpoint cannot be loaded.
        """
        model, tokenizer = load_reward_model(name, process_state().device, dtype, revision)
        controls = find_controls(name, revision)
        check_controls(controls, model.config.hidden_size, len(model.config.latents))
        return cls(model, tokenizer, controls)

    def encoder(self, max_length: int | None = None) -> ChatEncoder:
        """Make the encoder of texts; see `encoder_of`."""
        return encoder_of(self.model, self.tokenizer, max_length)

    def tokenize(self, rows: Any, max_length: int | None = None) -> TokenizedPreferences:
        """Tokenise preference pairs; see `tokenize_preferences`.

        Args:
            rows: Preference pairs in any of TRL's formats.
            max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        """
        return tokenize_preferences(rows, self.encoder(max_length))

    def represent(
        self, texts: list[TokenizedText], cache_dir: Path | None = None, prompts: bool = False
    ) -> Representations:
        """Compute the representations of texts, or load them from the cache; see `collect_representations`.

        Args:
            texts: The texts.
            cache_dir: Folder of the cache; by default in `HF_HOME`.
            prompts: Average the tokens of the prompts too; always done for a model with a gate.
        """
        config = self.model.config
        marks = config.response_marks if prompts or config.gate else None
        how = Pooling(config.pooling, config.representation_norm, marks)
        return collect_representations(self.model.model, self.model.sae, texts, how, cache_dir or default_cache_dir())

    def evaluate(self, pairs: TokenizedPreferences, cache_dir: Path | None = None) -> Evaluation:
        """Evaluate the reward model and its controls on tokenised preference pairs."""
        representations = self.represent(pairs.texts, cache_dir)
        styles = measure_styles(pairs, self.tokenizer)
        return evaluate_representations(self.model, self.controls, representations, pairs, styles, self.columns)

    @property
    def columns(self) -> Sequence[int]:
        """Columns of the selected latents in stored activations; empty for a slim checkpoint, which has no SAE."""
        return self.model.config.latent_ids if self.model.sae else []


def evaluate(
    model: str,
    rows: Any,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Evaluation:
    """Evaluate a saved reward model on preference pairs, beside the controls that were saved with it.

    Args:
        model: Folder or Hub id of the reward model.
        rows: Preference pairs in any of TRL's formats.
        max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        dtype: Data type of the base model; `auto` takes the type that training ran in.
        revision: Revision of the reward model on the Hub.
        cache_dir: Folder of cached representations; by default in `HF_HOME`.

    Raises:
        SparseRMError: The model cannot be loaded, or the pairs are not usable.

    Example:
        ```python
        from sparserm_hf import evaluate, load_preferences

        evaluation = evaluate("my-reward-model", load_preferences("my-test-pairs.jsonl"))
        print(evaluation)
        ```
    """
    saved = SavedRewardModel.load(model, dtype, revision)
    return saved.evaluate(saved.tokenize(rows, max_length), cache_dir)
