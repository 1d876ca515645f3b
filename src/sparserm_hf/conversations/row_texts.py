"""Find the texts to score in a row of any form: a text, messages, a prompt with a completion, or a preference pair.

`preferences.py` splits preference pairs, `messages.py` checks messages, `row_checks.py` checks single fields, and
`data_files.py` loads the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

from ..runtime import SparseRMError
from .implicit_prompts import repeats
from .messages import Text, as_conversation, check_texts
from .preferences import parse_preference
from .row_checks import check_row, list_names


def texts_of_row(row: Mapping[str, Any], where: str, needs_response: bool = True) -> dict[str, Text]:
    """Find the texts of a row, by the names of their rewards: `reward`, or `chosen_reward` and `rejected_reward`.

    A row is a preference pair (`chosen`, `rejected`, perhaps `prompt`), a `prompt` with a `completion`, or a whole
    `text` or `messages`. Conversations may have `tools` and `chat_template_kwargs` beside them.

    Args:
        row: A row of any of these forms.
        where: Name of the row in errors, see `row_name`.
        needs_response: Whether a conversation must end with the assistant's message.

    Raises:
        SparseRMError: The row has none of these forms, or a conversation does not end with the assistant's message.
    """
    check_row(row, where)
    if "chosen" in row and "rejected" in row:
        pair = parse_preference(row, where)
        return {f"{side}_reward": pair.text(side) for side in ("chosen", "rejected")}
    columns = ("prompt", "completion") if "prompt" in row and "completion" in row else ("messages",)
    columns = columns if columns[0] in row else ("text",)
    if columns[0] in row:
        parts = list(check_texts(row, columns, where).values())
        if len(parts) == 2 and not isinstance(parts[0], str) and repeats(parts[0], parts[1]):
            parts = parts[1:]  # the completion is the whole conversation
        whole = reduce(add, parts)
        if isinstance(whole, str):
            return {"reward": whole}
        return {"reward": as_conversation(whole, row, where, columns[-1], needs_response)}
    raise SparseRMError(
        f"{where} has the columns {list_names(row)}; it needs either `text`, or `messages`, or `prompt` with "
        "`completion`, or a preference pair of `chosen` and `rejected`."
    )
