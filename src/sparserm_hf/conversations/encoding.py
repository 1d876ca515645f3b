"""Encode texts as token ids with the place of the response, the same way for training, scoring and serving."""

from __future__ import annotations

import logging
import sys
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..modeling.response_sparserm import find_response, occurrences
from ..modeling.special_tokens_sparserm import SpecialTokens
from ..modeling.text_sparserm import encode_messages, encode_string, keep_end
from ..runtime import SparseRMError
from .chat_format import ChatFormat
from .chat_templates import render
from .messages import Conversation, GivenText, Text, given_text

logger = logging.getLogger(__name__)

MIN_LENGTH = 8  # smallest `max_length` in tokens: a chat template alone writes as many


class TokenizedText(NamedTuple):
    """Token ids of a text, and the place of its response.

    Attributes:
        ids: Token ids.
        turn: Index of the first token of the response's header; 0 in a plain text.
        start: Index of the first token of the response's content.
        stop: Index after the last token of the response's content.
    """

    ids: tuple[int, ...]
    turn: int
    start: int
    stop: int

    @property
    def place(self) -> tuple[int, int]:
        """Index of the first token of the response's content, and the index after its last token."""
        return self.start, self.stop

    @property
    def response(self) -> tuple[int, ...]:
        """Token ids of the response's content."""
        return self.ids[self.start : self.stop]

    def keep_end(self, max_length: int, bos: int | None) -> TokenizedText:
        """Cut the text to at most `max_length` tokens; see `text_sparserm.keep_end`."""
        ids, (turn, start, stop) = keep_end(self.ids, self[1:], max_length, bos)
        return TokenizedText(ids, turn, start, stop)


class ChatEncoder:
    """Encode texts as token ids, and find the response in each.

    A special token's spelling inside a message becomes ordinary text, so a message cannot fake a turn. A string that
    holds a header of the chat template counts as a rendered conversation. The whole of any other string counts as the
    response, and the log says so once.

    Args:
        tokenizer: The reward model's tokenizer.
        marks: `SparseRMConfig.response_marks`; None for a checkpoint of version 0.1.
        old_header: `SparseRMConfig.response_marker_ids`.
        max_length: Largest number of tokens of a text; a longer text loses its start.
        vocabulary: Number of tokens in the reward model's embedding; ids beyond it are refused.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        marks: dict[str, Any] | None,
        old_header: list[int] | None = None,
        max_length: int | None = None,
        vocabulary: int | None = None,
    ):
        self.vocabulary = vocabulary or sys.maxsize
        self.tokenizer, self.marks, self.old_header = tokenizer, marks, old_header or []
        self.max_length = max_length or sys.maxsize
        self.told_of_plain_text = self.told_of_last_turn = False
        chat = ChatFormat.of(tokenizer) if marks is not None else None
        self.tags = (chat.begin_of_reasoning, chat.end_of_reasoning) if chat else ("", "")
        self.specials = SpecialTokens(tokenizer)

    def __call__(self, text: GivenText, where: str = "A text", column: str = "text") -> TokenizedText:
        """Encode a text, cut to `max_length` tokens.

        Args:
            text: A string, or messages that end with the assistant's message.
            where: Name of the text in errors, see `row_name`.
            column: Name of its column in errors.

        Raises:
            SparseRMError: The text has neither form, is empty, or is refused by the chat template.
        """
        encoded = self.encode(given_text(text, where, column), where)
        return encoded.keep_end(self.max_length, self.tokenizer.bos_token_id)

    def encode(self, text: Text, where: str) -> TokenizedText:
        """Encode a text that `given_text` has checked, without cutting it to `max_length`."""
        encoded = self._encode_string(text, where) if isinstance(text, str) else self._encode_conversation(text, where)
        if not encoded.ids:
            raise SparseRMError(f"{where} has an empty text: there is nothing to score.")
        if max(encoded.ids) >= self.vocabulary:
            raise SparseRMError(
                f"{where} has the token id {max(encoded.ids)}, but the reward model knows {self.vocabulary} tokens: "
                "use the tokenizer that the reward model was trained with."
            )
        return encoded

    @property
    def headers(self) -> list[list[int]]:
        """Token id sequences that write the assistant header."""
        return [self.old_header] if self.marks is None else self.marks["assistant_header"]

    def as_text(self, written: str) -> tuple[int, ...]:
        """Tokenize a message's content; special tokens that are spelt out in it are ordinary text."""
        return self.specials.tokenize(written, (0, len(written)), [])[0]

    def _find(self, ids: tuple[int, ...], where: str) -> TokenizedText:
        found = find_response(ids, self.marks, self.old_header)
        if found is None:
            raise SparseRMError(
                f"{where} is a prompt without a response, but only a response can be scored: end the text with the "
                "assistant's turn."
            )
        return TokenizedText(ids, found.header, found.start, found.stop)

    def _encode_string(self, text: str, where: str) -> TokenizedText:
        ids = encode_string(text, self.tokenizer, self.marks)
        encoded = self._find(ids, where)
        if encoded.turn == len(ids) and not self.told_of_last_turn:
            self.told_of_last_turn = True
            logger.warning("%s ends with a turn of another role than the assistant: its response is empty.", where)
        if encoded.turn == 0 and not self.told_of_plain_text and not any(occurrences(ids, self.headers, 0, len(ids))):
            self.told_of_plain_text = True
            logger.warning(
                "%s is plain text, so its reward is that of the whole text, the prompt included; other rows may be "
                "plain text too. For the reward of a response give messages: {'prompt': [{'role': 'user', 'content': "
                "'...'}], 'completion': [{'role': 'assistant', 'content': '...'}]}.",
                where,
            )
        return encoded

    def _encode_conversation(self, conversation: Conversation, where: str) -> TokenizedText:
        tools, kwargs = self.specials.hide(conversation.tools), self.specials.hide(conversation.template_kwargs)

        def written(messages: list[dict[str, Any]]) -> str:
            return render(self.tokenizer, Conversation(messages, tools, kwargs), where=where)

        ids, place = encode_messages(conversation.messages, written, self.specials, self.tags, self.marks)
        if self.marks is None or place is None:
            return self._find(ids, where)
        turn = max(occurrences(ids, self.marks["assistant_header"], 0, place[0]), default=place)[0]
        return TokenizedText(ids, turn, *place)
