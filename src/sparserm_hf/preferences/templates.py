"""Chat templates: a text to token ids, the assistant header, truncation."""

from __future__ import annotations

import logging
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import SparseRMError

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
Text = str | Messages

# For base models without a chat template of their own; saved with the reward model. A turn is
# "User: ..." or "Assistant: ...", turns are apart by an empty line, an answer ends with the end-of-text token.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}"
    "{{ '\n\n' }}"  # as an expression: transformers trims a newline that follows a block
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def common_prefix_length(a: Any, b: Any) -> int:
    """Number of leading items that two sequences have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = False) -> str:
    """Messages put through the chat template.

    Raises:
        SparseRMError: The chat template refuses them.
    """
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except TemplateError as error:
        raise SparseRMError(f"The chat template refuses a conversation: {error}.") from error


def join(prompt: Text, response: Text) -> Text:
    """A prompt and a response of the same form as one text."""
    return prompt + response  # type: ignore[operator]


def encode(tokenizer: PreTrainedTokenizerBase, text: Text, add_generation_prompt: bool = False) -> list[int]:
    """Token ids of a plain text, or of messages put through the chat template; never with a doubled BOS.

    Raises:
        SparseRMError: The chat template refuses the messages.
    """
    if not isinstance(text, str):
        return tokenizer(render(tokenizer, text, add_generation_prompt), add_special_tokens=False)["input_ids"]
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos)["input_ids"]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer, in place, what a reward model needs: a pad token, a chat template, truncation on the left.

    Raises:
        SparseRMError: It has neither a pad nor an end-of-text token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SparseRMError(
                "The tokenizer has neither a pad token nor an end-of-text token: set tokenizer.pad_token to a token "
                "of its vocabulary."
            )
        logger.info("The tokenizer has no pad token; %s is used.", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        logger.info("The tokenizer has no chat template; the plain one of sparserm-hf is used and saved.")
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    tokenizer.truncation_side = "left"
    return tokenizer


def assistant_header_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that the chat template puts before every assistant message, whatever stands around them.

    Empty where there are none. Found by rendering several conversations and keeping the longest run of tokens that
    stands between the question and the answer in all of them: at the edges a token may merge with the text.
    """
    runs = []
    for question in ("What is it?", "Tell me more.", "x"):
        for answer in ("It is this.", "\n\nThis.", "1. this", " that"):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            text = render(tokenizer, messages)
            end = text.rindex(answer.strip())
            start = text.rindex(question, 0, end) + len(question)
            tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
            runs.append([token for token, (left, right) in spans if start <= left < right <= end])
    shortest = min(runs, key=len)
    for length in range(len(shortest), 0, -1):
        for i in range(len(shortest) - length + 1):
            candidate = shortest[i : i + length]
            if all(contains(run, candidate) for run in runs):
                return candidate
    return []


def contains(ids: list[int], part: list[int]) -> bool:
    """Whether some token ids stand in others, one after the other."""
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


def keep_end(ids: list[int], max_length: int, bos: int | None) -> list[int]:
    """Take tokens off the start until `max_length` are left; a begin-of-text token at the very start stays."""
    if len(ids) <= max_length:
        return ids
    head = ids[:1] if ids[0] == bos else []
    return head + ids[len(ids) - max_length + len(head) :]


def truncate(ids: list[int], prompt_length: int, max_length: int, bos: int | None) -> list[int] | None:
    """Like `keep_end`, but only the prompt may be shortened: None where the response alone is too long."""
    room = max_length - (ids[0] == bos)
    return None if len(ids) > max_length and len(ids) - prompt_length > room else keep_end(ids, max_length, bos)
