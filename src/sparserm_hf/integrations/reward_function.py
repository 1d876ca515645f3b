"""A reward model as a reward function of TRL's trainers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..conversations import ChatEncoder, Messages, TokenizedText, row_name, texts_of_row
from ..explanations import group_contributions
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import process_state
from ..scoring import check_rewards, encoder_of, load_reward_model, score_texts


class SparseRMReward:
    """A SparseRM reward model as a reward function, for the `reward_funcs` of `GRPOTrainer` and `RLOOTrainer`.

    The rewards are those of `sparserm score`. With a linear head, the logs also show the contributions of the features
    by group: the mean contribution of a group is a metric (`<name>/chosen`, `<name>/rejected`), and its contribution
    to each completion is a column of the table of completions. The rewards by objective of a combined reward model
    (`<name>/<objective>`) and the standard deviations of an ensemble (`<name>/deviation`) are logged in the same way.
    The function can be pickled; a copy loads the model at its first call.

    Args:
        model: Folder or Hub id of the reward model.
        revision: Revision of the reward model on the Hub.
        dtype: Data type of the base model; `auto` takes the type that training ran in.
        max_length: Maximum number of tokens of a text; a longer text loses its start. Default: as in training.

    Attributes:
        seen: Texts of the last call.

    Example:
        ```python
        from sparserm_hf import SparseRMReward

        reward = SparseRMReward("my-reward-model")
        rewards = reward(prompts=["Is the Earth flat?"], completions=["No, it is nearly a sphere."])
        ```
    """

    def __init__(self, model: str, revision: str | None = None, dtype: str = "auto", max_length: int | None = None):
        self.model, self.revision, self.dtype, self.max_length = model, revision, dtype, max_length
        self.__name__ = Path(model).name  # the name in the logs of a trainer
        self.seen: list[TokenizedText] = []
        self._encoder: ChatEncoder | None = None
        self._loaded: tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": None, "_encoder": None, "seen": []}

    def load(self) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
        """Load the reward model and its tokenizer at the first call, and return them.

        Raises:
            SparseRMError: The reward model cannot be loaded.
        """
        if self._loaded is None:
            self._loaded = load_reward_model(self.model, process_state().device, self.dtype, self.revision)
        return self._loaded

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Score completions.

        Args:
            prompts: Prompts, as strings or as lists of messages.
            completions: A completion for each prompt, in the same form.
            log_metric: TRL's function that logs a number.
            log_extra: TRL's function that logs a column of the table of completions.
            columns: Other columns of the dataset; `tools` and `chat_template_kwargs` go to the chat template.

        Returns:
            A reward for each completion.

        Raises:
            SparseRMError: The model cannot be loaded, a text is empty, or a reward is not finite.
        """
        model, tokenizer = self.load()
        if self._encoder is None:
            self._encoder = encoder_of(model, tokenizer, self.max_length)
        self.seen = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: columns[name][i] for name in ("tools", "chat_template_kwargs") if columns.get(name)}
            row |= {"prompt": prompt, "completion": completion}
            where = row_name(i + 1)
            self.seen += [self._encoder(text, where, "completion") for text in texts_of_row(row, where).values()]
        scores = score_texts(model, self.seen)
        for i, reward in enumerate(scores.rewards, 1):
            check_rewards([reward], row_name(i))
        for group, values in group_contributions(model, scores).items():
            if log_metric:
                log_metric(f"{self.__name__}/{group}", float(values.mean()))
            if log_extra:
                log_extra(f"{self.__name__}/{group}", values.tolist())
        return scores.rewards.tolist()
