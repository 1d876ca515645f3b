"""Explain the rewards of rows, each with one text or a pair; `explained_pairs.py` explains pairs for the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..conversations import ChatEncoder, row_name, texts_of_row
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError
from ..scoring import ROW_ERROR, check_rewards, encoder_of
from .attribution import explain_tokens
from .text_explanation import LatentEffect, TextExplanation, contrast


@dataclass(frozen=True)
class ExplainedRow:
    """A row with the explanations of its rewards.

    Attributes:
        row: The row.
        explanations: Explanations by the name of the reward: `reward`, or `chosen_reward` and `rejected_reward`.
        error: The reason why the row could not be explained; empty for an explained row.
    """

    row: Mapping[str, Any]
    explanations: dict[str, TextExplanation]
    error: str = ""

    def as_json(self, top: int | None = None) -> dict[str, Any]:
        """Add rewards and explanations to the row; a pair also gets the `difference` of its rewards by latent.

        Args:
            top: Number of latents to keep, the largest contributions first; by default all.
        """
        if self.error:
            return {**self.row, ROW_ERROR: self.error}
        output = dict(self.row)
        for name, explanation in self.explanations.items():
            latents = [_latent_as_json(effect) for effect in explanation.latents[:top]]
            output[name] = explanation.reward
            described = asdict(explanation) | {"latents": latents}
            described["objectives"] = [
                {
                    of: value
                    for of, value in part.items()
                    if part["share"] is not None or of not in ("share", "reasons")
                }
                for part in described["objectives"]
            ]
            optional = ("objectives", "deviation", "penalty")
            output[name.removesuffix("reward") + "explanation"] = {
                of: value for of, value in described.items() if value or of not in optional
            }
        if len(self.explanations) == 2:
            difference = list(contrast(*self.explanations.values()).items())
            output["difference"] = {str(latent): x for latent, x in difference[:top]}
        return output


def explain_row(
    model: SparseRMForSequenceClassification, encoder: ChatEncoder, row: Mapping[str, Any], where: str
) -> ExplainedRow:
    """Explain the rewards of one row.

    Args:
        model: The reward model.
        encoder: Its encoder, see `encoder_of`.
        row: A row as `texts_of_row` takes it.
        where: Name of the row, for errors.

    Raises:
        SparseRMError: The row is malformed or empty, or a reward is not finite.
    """
    texts = {name: encoder(text, where) for name, text in texts_of_row(row, where).items()}
    explained = {name: explain_tokens(model, encoder.tokenizer, text) for name, text in texts.items()}
    check_rewards((explanation.reward for explanation in explained.values()), where)
    return ExplainedRow(row, explained)


def explain_rows(
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    max_length: int | None = None,
    source: str = "",
) -> Iterator[ExplainedRow]:
    """Explain the rewards of rows, one by one; a row that cannot be explained carries its error.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        rows: Rows as `texts_of_row` takes them.
        max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        source: Name of the file that the rows come from, for errors.

    Example:
        ```python
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from sparserm_hf import explain_rows

        model = AutoModelForSequenceClassification.from_pretrained("my-reward-model")
        tokenizer = AutoTokenizer.from_pretrained("my-reward-model")
        for explained in explain_rows(model, tokenizer, [{"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}]):
            print(explained.explanations["chosen_reward"])
            print(explained.as_json(top=5)["difference"])
        ```
    """
    encoder = encoder_of(model, tokenizer, max_length)
    for number, row in enumerate(rows, 1):
        try:
            yield explain_row(model, encoder, row, row_name(number, source))
        except SparseRMError as error:
            yield ExplainedRow(row, {}, str(error))


def _latent_as_json(effect: LatentEffect) -> dict[str, Any]:
    """Turn an effect into JSON; only a latent whose removal was measured keeps its contributions by token."""
    described = asdict(effect) | {"as_stated": effect.as_stated}
    dropped = {"tokens"} if effect.removed is None else set()
    dropped |= set() if effect.by_objective else {"by_objective"}
    return {name: value for name, value in described.items() if name not in dropped}
