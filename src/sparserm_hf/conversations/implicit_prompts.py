"""Find the prompt that both responses of a preference pair begin with, in messages or in one string."""

from __future__ import annotations

import re

from ..runtime import common_prefix_length
from .messages import Messages

# Start of an answer in a dialogue that is one string, as in Anthropic's HH-RLHF and many later data sets.
TURN = re.compile(r"\n\n(?:Assistant|ASSISTANT|AI|Bot|Response|Answer):")


def repeats(prompt: str | Messages, response: str | Messages) -> bool:
    """Tell if a response begins with the prompt, and more follows."""
    return len(response) > len(prompt) and response[: len(prompt)] == prompt


def implicit_prompt(chosen: str | Messages, rejected: str | Messages) -> int:
    """Count the messages or characters of the prompt that two responses begin with."""
    shared = common_prefix_length(chosen, rejected)
    if not isinstance(chosen, str):
        return min(shared, len(chosen) - 1, len(rejected) - 1)
    assert isinstance(rejected, str)
    if shared == len(chosen) == len(rejected):
        return 0
    turns = [match.end() for match in TURN.finditer(chosen[:shared])]
    if turns and chosen[turns[-1] :].strip() and rejected[turns[-1] :].strip():
        return turns[-1]
    # The last word start within the common prefix after which neither response is empty.
    least = min(len(chosen.rstrip()), len(rejected.rstrip()))
    starts = (i for i in range(min(shared, least - 1), 0, -1) if chosen[i - 1].isspace() and not chosen[i].isspace())
    return next(starts, 0)
