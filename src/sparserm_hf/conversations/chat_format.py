"""The text that a chat template writes around contents, and its reasoning tags: found by rendering samples.

`chat_templates.py` renders; `response_marks.py` turns the text that is found here into token ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..modeling.special_tokens_sparserm import TAG
from ..modeling.text_sparserm import ANSWER, REASONING_FIELDS
from ..runtime import SparseRMError, common_prefix_length
from .chat_templates import render
from .messages import Conversation, Messages

# Placeholders for contents in a rendering: Unicode assigns no character to these code points, so no text holds them.
QUESTION, OTHER = "\ufdd1", "\ufdd3"
REASONING = ("<think>", "</think>")  # if the template has no tags of its own
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "What."}}},
    },
}
TOOL_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": {"key": "x"}}},
    ],
}


@dataclass(frozen=True)
class ChatFormat:
    """The text that a chat template writes around messages' contents.

    Attributes:
        before_header: Text between a question and the assistant header.
        assistant_header: Text before an answer; empty if the template writes no header there.
        header_after_tool: Text before an answer that follows a tool's message; empty if it is the assistant header.
        after_header: Text between the assistant header and an answer without reasoning.
        other_headers: Texts before the content of a user's turn, of a system turn and of a tool's turn, without
            repetition. A header that cannot be told from the user's or the assistant's is left out.
        end_of_turn: Text after an answer.
        begin_of_reasoning: Tag that opens a reasoning block.
        end_of_reasoning: Tag that closes a reasoning block.
    """

    before_header: str
    assistant_header: str
    header_after_tool: str
    after_header: str
    other_headers: tuple[str, ...]
    end_of_turn: str
    begin_of_reasoning: str
    end_of_reasoning: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        """Find the format of a tokenizer's chat template.

        Raises:
            SparseRMError: The template refuses a question with its answer, or does not write both.
        """
        user, assistant = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
        added = added_tokens(tokenizer)
        whole = render(tokenizer, [user, assistant])
        if whole.count(QUESTION) != 1 or whole.count(ANSWER) != 1:
            raise SparseRMError(
                "The chat template does not write each message's content exactly once: give the tokenizer another "
                "chat template."
            )
        between = whole[whole.index(QUESTION) + 1 : whole.index(ANSWER)]
        asked = render(tokenizer, [user]).partition(QUESTION)[2]
        prompted = render(tokenizer, [user], add_generation_prompt=True).partition(QUESTION)[2]
        begin, end = _reasoning_tags(tokenizer, user)
        header = _shared(between, prompted, added).partition(begin)[0]
        before = _shared(header, asked, added)
        if not header[len(before) :].strip():  # Mistral's generation prompt is the text that ends the question
            before = ""
        tail = whole.partition(ANSWER)[2]
        user_header, system_header = (
            _turn_header(tokenizer, [user, assistant], role, tail, added) for role in ("user", "system")
        )
        tool_header, after_tool = _tool_headers(tokenizer, user, user_header)
        header = header[len(before) :]
        if header.strip() in ("", user_header.strip()):
            header = ""
        if (
            not header or header.strip() in system_header
        ):  # the template writes any role but the user's as the assistant
            system_header = ""
        others = dict.fromkeys(text for text in (user_header, system_header, tool_header) if text.strip())
        after_header = between[len(before + header) :]
        after_tool = "" if not header or header.strip() in after_tool else after_tool[_last_token(after_tool, added) :]
        return cls(before, header, after_tool, after_header, tuple(others), tail, begin, end)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the added tokens, special or not, as text."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.content]


def _shared(a: str, b: str, added: list[str]) -> str:
    """Return the common prefix of two texts; if they differ within an added token, it ends before that token."""
    length = common_prefix_length(a, b)
    # `<|assistant|>` and `<|end|>` begin with the same characters, but are not made of them.
    cut = [
        start
        for token in added
        for start in range(max(length - len(token) + 1, 0), length)
        if a.startswith(token, start) or b.startswith(token, start)
    ]
    return a[: min(cut, default=length)]


def _without(text: str, start: str, added: list[str]) -> str:
    """Remove the common prefix of a text and `start` from the text."""
    return text[len(_shared(text, start, added)) :]


def _last_token(text: str, added: list[str]) -> int:
    """Find the last added token in a text; return the index of its first character, or else the text's length."""
    return max((text.rindex(token) for token in added if token in text), default=len(text))


def _turn_header(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, role: str, tail: str, added: list[str]
) -> str:
    """Find the header of a turn that follows an answer; empty if the template refuses the turn or moves it."""
    try:
        again = render(tokenizer, [*messages, {"role": role, "content": OTHER}])
    except SparseRMError:
        return ""
    before, found, _ = again.partition(ANSWER)[2].partition(OTHER)
    return _without(before, tail, added) if found else ""


def _tool_headers(tokenizer: PreTrainedTokenizerBase, user: dict[str, str], user_header: str) -> tuple[str, str]:
    """Find the header of a tool's message, and the header of the assistant's answer after that message.

    The tool's header is empty if the template writes a tool's message as a user's turn. Both are empty if the
    template refuses tools.
    """
    answer = {"role": "tool", "name": "look_up", "tool_call_id": "call00001", "content": OTHER}
    try:
        asked = render(tokenizer, Conversation([user, TOOL_CALL], [TOOL]))
        answered = render(tokenizer, Conversation([user, TOOL_CALL, answer], [TOOL]))
        told = render(
            tokenizer, Conversation([user, TOOL_CALL, answer, {"role": "assistant", "content": ANSWER}], [TOOL])
        )
    except SparseRMError:
        return "", ""
    if OTHER not in answered:
        return "", ""
    added = added_tokens(tokenizer)
    after = told.partition(OTHER)[2].partition(ANSWER)[0]
    header = _without(answered.partition(OTHER)[0], asked, added)
    if user_header.strip() and user_header.strip() in header:
        return "", after
    # After the header's last added token stands a role's name, or text of this message alone, such as a quotation
    # mark.
    end = max((header.rindex(content) + len(content) for content in added if content in header), default=0)
    name = re.match(r"\w*", header[end:])
    return header[: end + name.end()] if end and name else header, after


def _reasoning_tags(tokenizer: PreTrainedTokenizerBase, user: dict[str, str]) -> tuple[str, str]:
    """Find the tags that open and close a reasoning block."""
    thoughts = dict.fromkeys(REASONING_FIELDS, OTHER)
    try:
        whole = render(tokenizer, [user, {"role": "assistant", "content": ANSWER, **thoughts}])
    except SparseRMError:
        return REASONING
    before, found, after = whole.partition(OTHER)
    end, answered, _ = after.partition(ANSWER)
    begin = TAG.search(before.rstrip())
    return (begin[0], end.strip()) if found and answered and begin and end.strip() else REASONING
