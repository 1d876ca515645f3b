"""Explanations of rows: of a text, or of both sides of a pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ..conversations import ChatEncoder, row_name, texts_of_row
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..scoring import check_rewards
from .attribution import LatentEffect, TextExplanation, contrast, explain_tokens

Explained = dict[str, TextExplanation]  # by the name of the reward: `reward`, or `chosen_reward` and `rejected_reward`


def explain_rows(
    model: SparseRMForSequenceClassification,
    encoder: ChatEncoder,
    rows: Iterable[Mapping[str, Any]],
    source: str = "",
    first_number: int = 1,
) -> Iterator[tuple[Mapping[str, Any], Explained]]:
    """Yield each row with the explanations of its texts.

    Args:
        model: The reward model.
        encoder: Its encoder, see `encoder_of`.
        rows: Rows as `texts_of_row` takes them.
        source: The file that the rows are in, for errors.
        first_number: Number of the first row, for errors.

    Raises:
        SparseRMError: A row is of another form, or empty, or its reward not finite.
    """
    for number, row in enumerate(rows, first_number):
        where = row_name(number, source)
        texts = {name: encoder(text, where) for name, text in texts_of_row(row, where).items()}
        explained = {name: explain_tokens(model, encoder.tokenizer, text) for name, text in texts.items()}
        check_rewards((explanation.reward for explanation in explained.values()), where)
        yield row, explained


def as_json(row: Mapping[str, Any], explained: Explained, top: int | None = None) -> dict[str, Any]:
    """A row with its rewards and explanations added; a pair also gets `difference`, by latent.

    Args:
        row: The row.
        explained: Its texts.
        top: Latents to name, of those that add most; by default all.
    """
    output = dict(row)
    for name, explanation in explained.items():
        latents = [_latent_as_json(effect) for effect in explanation.latents[:top]]
        output[name] = explanation.reward
        output[name.removesuffix("reward") + "explanation"] = asdict(explanation) | {"latents": latents}
    if len(explained) == 2:
        output["difference"] = {str(latent): x for latent, x in list(contrast(*explained.values()).items())[:top]}
    return output


def _latent_as_json(effect: LatentEffect) -> dict[str, Any]:
    """An effect as JSON; by token only where the intervention was tried, for those that add most."""
    described = asdict(effect) | {"as_stated": effect.as_stated}
    return described if effect.removed is not None else {k: v for k, v in described.items() if k != "tokens"}
