"""Render conversations by a tokenizer's chat template.

`chat_format.py` finds the text that a template writes around contents; `template_renderer.py` runs the template in a
process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling.messages_sparserm import in_parts, takes_parts_only
from ..runtime import SparseRMError, reason
from .messages import Conversation, Messages
from .template_renderer import RENDERER

logger = logging.getLogger(__name__)

MOST_SHOWN = 200  # characters of a template's own error message
PARTS_ALONE: dict[str, bool] = {}  # by template, see `wraps_contents`


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation | Messages,
    add_generation_prompt: bool = False,
    where: str = "A conversation",
) -> str:
    """Render a conversation by the chat template.

    Raises:
        SparseRMError: The chat template refuses it.
    """
    if not isinstance(conversation, Conversation):
        conversation = Conversation(conversation)
    messages = conversation.messages
    if wraps_contents(tokenizer):
        messages = [in_parts(message) for message in messages]
    try:
        return rendered_messages(
            tokenizer, messages, conversation.tools, add_generation_prompt, conversation.template_kwargs
        )
    except Exception as error:  # a template may raise anything; a tokenizer without a template raises ValueError
        why = reason(error).rstrip(".")
        why = why if len(why) <= MOST_SHOWN else f"{why[:MOST_SHOWN]}..."  # a template may quote the conversation
        raise SparseRMError(f"{where} is refused by the chat template: {why}.") from error


def rendered_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: list[Any] | None = None,
    add_generation_prompt: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation as `apply_chat_template` does, with limits on time and memory.

    Raises:
        ValueError: The tokenizer has no chat template.
        TemplateError: The template raises an error, or reaches a limit.
    """
    return RENDERER.render(
        conversations=[messages],
        tools=tools,
        chat_template=tokenizer.get_chat_template(None, tools),
        add_generation_prompt=add_generation_prompt,
        **{**tokenizer.special_tokens_map, **(template_kwargs or {})},
    )


def wraps_contents(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell if a tokenizer's chat template takes parts only; see `takes_parts_only`."""
    template = str(tokenizer.chat_template)
    if template not in PARTS_ALONE:
        PARTS_ALONE[template] = takes_parts_only(lambda messages: rendered_messages(tokenizer, messages))
    return PARTS_ALONE[template]


def encode(tokenizer: PreTrainedTokenizerBase, text: str | Messages, add_generation_prompt: bool = False) -> list[int]:
    """Encode a plain text, or messages rendered by the chat template, as token ids with at most one BOS token.

    This is for models that generate text. Texts for a reward model go through `ChatEncoder`, which also finds the
    response.

    Raises:
        SparseRMError: The chat template refuses the messages.
    """
    if not isinstance(text, str):
        return tokenizer(render(tokenizer, text, add_generation_prompt), add_special_tokens=False)["input_ids"]
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
