"""The reward model as a function, for trainers that call one."""

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
    """A SparseRM reward model as a reward function, with what its groups of features contribute in the logs.

    Give it to `GRPOTrainer` or `RLOOTrainer` as one of their `reward_funcs`. The rewards are those of
    `sparserm score`. For a linear head, each group's mean contribution is a metric (`<name>/chosen`,
    `<name>/rejected`) and its contribution to each completion a column of the table of completions. It can be
    pickled: a copy loads the model when it is first called.

    Args:
        model: Folder or Hub id of the reward model.
        revision: Of the reward model on the Hub.
        dtype: Type to run in; `auto` is the one that training ran in.
        max_length: Longer texts lose their start; by default as long as in training.

    Attributes:
        seen: The texts of the last call.
    """

    def __init__(self, model: str, revision: str | None = None, dtype: str = "auto", max_length: int | None = None):
        self.model, self.revision, self.dtype, self.max_length = model, revision, dtype, max_length
        self.__name__ = Path(model).name  # what trainers log it as
        self.seen: list[TokenizedText] = []
        self._encoder: ChatEncoder | None = None
        self._loaded: tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_loaded": None, "_encoder": None, "seen": []}

    def load(self) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
        """The reward model and its tokenizer, loaded once.

        Raises:
            SparseRMError: They cannot be loaded.
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
            prompts: Strings or lists of messages.
            completions: Of the same form, one for each prompt.
            log_metric: TRL's.
            log_extra: TRL's.
            columns: The other columns of the trainer's data set; `tools` and `chat_template_kwargs` go to the chat
                template.

        Raises:
            SparseRMError: The model cannot be loaded, a text is empty, or a reward not finite.
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
        for group, values in group_contributions(model, scores.features).items():
            if log_metric:
                log_metric(f"{self.__name__}/{group}", float(values.mean()))
            if log_extra:
                log_extra(f"{self.__name__}/{group}", values.tolist())
        return scores.rewards.tolist()
