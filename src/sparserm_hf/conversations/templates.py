"""Chat templates: rendering, and what a tokenizer needs before a reward model can use it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..runtime import SparseRMError, reason
from .messages import Conversation, Messages
from .rendering import RENDERER

logger = logging.getLogger(__name__)

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
MOST_SHOWN = 200  # characters of what a template says when it refuses a conversation
PROBE = "a content"
PARTS_ALONE: dict[str, bool] = {}  # by template, see `reads_parts_alone`
DATE_FUNCTION = "strftime_now"  # which transformers gives to templates


def render(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation | Messages,
    add_generation_prompt: bool = False,
    where: str = "A conversation",
) -> str:
    """A conversation put through the chat template.

    Raises:
        SparseRMError: The chat template refuses it.
    """
    if not isinstance(conversation, Conversation):
        conversation = Conversation(conversation)
    messages = conversation.messages
    if reads_parts_alone(tokenizer):
        messages = [in_parts(message) for message in messages]
    try:
        return rendered_messages(
            tokenizer, messages, conversation.tools, add_generation_prompt, conversation.template_kwargs
        )
    except Exception as error:  # what a template raises, and what a tokenizer without one does
        why = reason(error).rstrip(".")
        why = why if len(why) <= MOST_SHOWN else f"{why[:MOST_SHOWN]}..."  # it may quote the whole conversation
        raise SparseRMError(f"{where} is refused by the chat template: {why}.") from error


def rendered_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: list[Any] | None = None,
    add_generation_prompt: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """What a tokenizer's `apply_chat_template` writes, with limits on time and memory.

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


def in_parts(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of one text part."""
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def reads_parts_alone(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template writes contents that are lists of parts, and none that are strings.

    Those of some vision-language models, such as SmolVLM, do so.
    """
    template = str(tokenizer.chat_template)
    if template not in PARTS_ALONE:
        message = {"role": "user", "content": PROBE}
        given = [message, in_parts(message)]
        as_string, as_parts = (_writes(tokenizer, [message]) for message in given)
        PARTS_ALONE[template] = as_parts and not as_string
    return PARTS_ALONE[template]


def _writes(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> bool:
    try:
        return PROBE in rendered_messages(tokenizer, messages)
    except Exception:  # a template may raise anything
        return False


def encode(tokenizer: PreTrainedTokenizerBase, text: str | Messages, add_generation_prompt: bool = False) -> list[int]:
    """Token ids of a plain text, or of messages put through the chat template; never with a doubled BOS.

    This is for models that write. What a reward model reads goes through `ChatEncoder`, which also finds the response.

    Raises:
        SparseRMError: The chat template refuses the messages.
    """
    if not isinstance(text, str):
        return tokenizer(render(tokenizer, text, add_generation_prompt), add_special_tokens=False)["input_ids"]
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos)["input_ids"]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer, in place, what a reward model needs.

    That is a pad token, a chat template that prints one date for ever, and truncation on the left.

    Raises:
        SparseRMError: It has neither a pad nor an end-of-text token, or it does not tell where its tokens stand in a
            text.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SparseRMError(
            f"The tokenizer is a {type(tokenizer).__name__}, which does not tell where its tokens stand in a text, so "
            "that the response cannot be found: use the fast tokenizer of this base model (a tokenizer.json)."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SparseRMError(
                "The tokenizer has neither a pad token nor an end-of-text token: set tokenizer.pad_token to a token "
                "of its vocabulary."
            )
        logger.info("The tokenizer has no pad token; %s is used.", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    template: Any = tokenizer.chat_template
    if template is None:
        logger.info("The tokenizer has no chat template; the plain one of sparserm-hf is used and saved.")
        template = PLAIN_CHAT_TEMPLATE
    now = datetime.now()
    if isinstance(template, dict):  # several, by name
        tokenizer.chat_template = {name: with_fixed_date(of_name, now) for name, of_name in template.items()}
    else:
        tokenizer.chat_template = with_fixed_date(template, now)
    tokenizer.truncation_side = "left"
    return tokenizer


def with_fixed_date(template: str, now: datetime) -> str:
    """A chat template in which today is always the day `now`; as it was where it prints no date.

    The date is part of what the base model reads: without this, a reward would change from one day to the next.
    """
    if DATE_FUNCTION not in template or f"macro {DATE_FUNCTION}" in template:
        return template
    codes = [code for letter in "aAbBdeFHIjmMpSUwWxXyY" for code in (f"%{letter}", f"%-{letter}")]
    filters = "".join(f" | replace('{code}', '{now.strftime(code)}')" for code in codes)
    return f"{{%- macro {DATE_FUNCTION}(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}{template}"
