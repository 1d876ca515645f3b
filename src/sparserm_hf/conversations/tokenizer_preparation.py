"""Prepare a tokenizer for a reward model: pad token, chat template if it has none, a fixed date."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..runtime import SparseRMError

logger = logging.getLogger(__name__)

# For base models without a chat template; it is saved with the reward model. A turn is "User: ..." or
# "Assistant: ...", an empty line separates turns, and an answer ends with the end-of-text token.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}"
    "{{ '\n\n' }}"  # as an expression: transformers trims a newline that follows a block
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
DATE_FUNCTION = "strftime_now"  # a function that transformers gives to templates


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer, in place, a pad token, a chat template with a fixed date, and truncation on the left.

    Raises:
        SparseRMError: The tokenizer has neither a pad nor an end-of-text token, or it is not a fast tokenizer: only
            fast tokenizers give the character offsets of their tokens.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SparseRMError(
            f"The tokenizer is a {type(tokenizer).__name__}, which does not tell the character offsets of its tokens, "
            "but finding the response needs them: use the fast tokenizer of this base model (a tokenizer.json)."
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
    """Fix the date in a chat template to the day `now`; a template without a date stays the same.

    The date is part of the base model's input: if it were not fixed, rewards would change from day to day.
    """
    if DATE_FUNCTION not in template or f"macro {DATE_FUNCTION}" in template:
        return template
    codes = [code for letter in "aAbBdeFHIjmMpSUwWxXyY" for code in (f"%{letter}", f"%-{letter}")]
    filters = "".join(f" | replace('{code}', '{now.strftime(code)}')" for code in codes)
    return f"{{%- macro {DATE_FUNCTION}(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}{template}"
