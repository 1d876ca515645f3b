"""From a text to token ids with the place of the response, the same for every way in."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..modeling.response_sparserm import count_bos, find_response, occurrences, trim
from ..runtime import SparseRMError
from .chat_format import ANSWER, REASONING_FIELDS, TAG, WHITESPACE, ChatFormat
from .chat_templates import render
from .messages import Conversation, GivenText, Text, given_text

logger = logging.getLogger(__name__)

MIN_LENGTH = 8  # least maximum of tokens of a text: a chat template alone takes as many

# What stands for a special token while a template renders: a code point that Unicode keeps free of characters, so that
# no text holds it, and then one of a private range.
RESERVED, STAND_IN = "\ufdd0", 0xF0000


class TokenizedText(NamedTuple):
    """Token ids of a text and where its response stands.

    Attributes:
        ids: Token ids.
        turn: Index of the first token of the response's header; 0 in a plain text.
        start: Index of the first token of the response's content.
        stop: Index after the last one.
    """

    ids: tuple[int, ...]
    turn: int
    start: int
    stop: int

    @property
    def place(self) -> tuple[int, int]:
        """Where the response stands, as `find_responses` tells it."""
        return self.start, self.stop

    @property
    def response(self) -> tuple[int, ...]:
        """Token ids of the response's content."""
        return self.ids[self.start : self.stop]

    def keep_end(self, max_length: int, bos: int | None) -> TokenizedText:
        """The text with at most `max_length` tokens.

        What follows the response goes first: the same conversation may come with it or without. Then tokens go from
        the start of the text; a begin-of-text token stays.
        """
        if len(self.ids) <= max_length:
            return self
        ids = self.ids[: max(self.stop, max_length)]
        head = ids[: int(ids[0] == bos)]
        taken = len(ids) - max_length
        turn, start, stop = (max(i - taken, len(head)) if i else 0 for i in self[1:])
        return TokenizedText(head + ids[taken + len(head) :], turn, start, stop)


def without_whitespace(text: str, region: tuple[int, int]) -> tuple[int, int]:
    """A region of a text without the whitespace at its ends: first index, index after the last."""
    start, stop = region
    content = text[start:stop]
    return start + len(content) - len(content.lstrip(WHITESPACE)), start + len(content.rstrip(WHITESPACE))


class ChatEncoder:
    """Turns texts into token ids, and finds the response in each.

    A special token's spelling inside a content is ordinary text, so that nobody who writes a content can write
    structure. A string in which a header of the chat template stands is a conversation that somebody has rendered; in
    any other string all of the text counts, and the log says so once.

    Args:
        tokenizer: The reward model's.
        marks: `SparseRMConfig.response_marks`; None for a checkpoint of version 0.1.
        old_header: `SparseRMConfig.response_marker_ids`.
        max_length: Most tokens of a text; a longer one loses its start.
        vocabulary: Number of tokens that the reward model has an embedding of.
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
        template = str(tokenizer.chat_template)
        # Special tokens, and those that only the template makes special, such as the tags around reasoning. Not the
        # unknown token, which stands for any word that the vocabulary lacks.
        self.specials = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if number != tokenizer.unk_token_id
            and (token.special or (TAG.fullmatch(token.content) and token.content in template))
        }
        spellings = sorted(self.specials, key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self._stand_ins = {spelling: RESERVED + chr(STAND_IN + i) for i, spelling in enumerate(spellings)}
        self._spelled = {stand_in: spelling for spelling, stand_in in self._stand_ins.items()}
        self._stand_in = re.compile("|".join(self._spelled) or r"(?!)")
        self._special_ids = set(self.specials.values())
        self._as_text: dict[str, tuple[int, ...]] = {}

    def __call__(self, text: GivenText, where: str = "A text", column: str = "text") -> TokenizedText:
        """Token ids of a text, and where its response stands.

        Args:
            text: A string, or messages that end with the assistant's.
            where: What errors call it, see `row_name`.
            column: The field that it stands in.

        Raises:
            SparseRMError: It is of another form, empty, or refused by the chat template.
        """
        encoded = self.encode(given_text(text, where, column), where)
        return encoded.keep_end(self.max_length, self.tokenizer.bos_token_id)

    def encode(self, text: Text, where: str) -> TokenizedText:
        """The same of a text that is checked already, however long it is."""
        encoded = self._encode_string(text, where) if isinstance(text, str) else self._encode_conversation(text, where)
        if not encoded.ids:
            raise SparseRMError(f"{where} has an empty text: there is nothing to score.")
        if max(encoded.ids) >= self.vocabulary:
            raise SparseRMError(
                f"{where} has the token id {max(encoded.ids)}, but the reward model has {self.vocabulary} tokens: "
                "use the tokenizer that it was trained with."
            )
        return encoded

    @property
    def headers(self) -> list[list[int]]:
        """Token id sequences that write the assistant header."""
        return [self.old_header] if self.marks is None else self.marks["assistant_header"]

    def as_text(self, written: str) -> tuple[int, ...]:
        """Token ids of a content in which the spellings of special tokens are ordinary text."""
        return self._tokenize(written, (0, len(written)), [])[0]

    def _find(self, ids: tuple[int, ...], where: str) -> TokenizedText:
        found = find_response(ids, self.marks, self.old_header)
        if found is None:
            raise SparseRMError(
                f"{where} is a prompt without a response, but a reward is that of a response: end the text with the "
                "assistant's turn."
            )
        return TokenizedText(ids, found.header, found.start, found.stop)

    def _encode_string(self, text: str, where: str) -> TokenizedText:
        bos = self.tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)
        ids = tuple(self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"])
        if self.marks is not None:
            found, wanted = count_bos(ids, self.tokenizer.bos_token_id, self.marks)
            ids = ids[found - wanted :] if found > wanted else (self.tokenizer.bos_token_id,) * (wanted - found) + ids
        encoded = self._find(ids, where)
        if encoded.turn == len(ids) and not self.told_of_last_turn:
            self.told_of_last_turn = True
            logger.warning("%s ends with a turn of another role than the assistant: its response is empty.", where)
        if encoded.turn == 0 and not self.told_of_plain_text and not any(occurrences(ids, self.headers, 0, len(ids))):
            self.told_of_plain_text = True
            logger.warning(
                "%s has no assistant header of the chat template: all of its tokens are read, those of a prompt too. "
                "Give conversations as messages, or rendered by the template.",
                where,
            )
        return encoded

    def _encode_conversation(self, conversation: Conversation, where: str) -> TokenizedText:
        last = conversation.messages[-1]
        answer = len(last["content"]) - len(self._answer(last))  # where it starts, behind any reasoning
        guarded = [self._guard(message) for message in conversation.messages]
        tools, kwargs = self._hide(conversation.tools), self._hide(conversation.template_kwargs)
        written = render(self.tokenizer, Conversation(guarded, tools, kwargs), where=where)
        opening = self._guard(last | {"content": last["content"][:answer]})["content"]
        marked = guarded[-1] | {"content": opening + ANSWER}
        around = render(self.tokenizer, Conversation([*guarded[:-1], marked], tools, kwargs), where=where)
        ahead, found, behind = around.rpartition(ANSWER)
        known = bool(found) and written.startswith(ahead) and written.endswith(behind)
        known = known and len(ahead) + len(behind) <= len(written)
        region = (len(ahead), len(written) - len(behind)) if known else (0, 0)
        text, region, fakes = self._spell(written, region)
        region = without_whitespace(text, region)  # a token of what is before it may take in the space between
        ids, spans = self._tokenize(text, region, fakes)
        if self.marks is None or last.get("tool_calls"):  # a call belongs to the response
            return self._find(ids, where)
        inside = [i for i, (left, right) in enumerate(spans) if max(left, region[0]) < min(right, region[1])]
        start, stop = trim(ids, self.marks, inside[0], inside[-1] + 1) if inside else (0, 0)
        if start == stop:  # no answer: what reasoning or calls there are
            return self._find(ids, where)
        turn = max(occurrences(ids, self.marks["assistant_header"], 0, start), default=(start, start))[0]
        return TokenizedText(ids, turn, start, stop)

    def _answer(self, message: Mapping[str, Any]) -> str:
        """A content without the reasoning block that it begins with, or without the opening of one that never ends."""
        content = message["content"]
        if self.marks is None or any(message.get(name) for name in REASONING_FIELDS):
            return content
        begin, end = self.tags
        block, closed, answer = content.partition(end)
        return answer if closed else block.lstrip().removeprefix(begin) if block.lstrip().startswith(begin) else block

    def _guard(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message in which no content spells a special token; the tags around an assistant's reasoning stay."""
        guarded = self._hide(message)
        content = message["content"]
        answer = self._answer(message)
        if message["role"] != "assistant" or answer == content:
            return guarded
        begin, end = self.tags
        closed = end if content[: len(content) - len(answer)].endswith(end) else ""
        block = content[: len(content) - len(answer) - len(closed)]
        blank = block[: len(block) - len(block.lstrip())]
        opened = begin if block.lstrip().startswith(begin) else ""
        block = block[len(blank + opened) :]
        return guarded | {"content": blank + opened + self._hide(block) + closed + self._hide(answer)}

    def _hide(self, value: Any) -> Any:
        """A value in whose strings and names stand-ins take the place of the spellings of special tokens."""
        if isinstance(value, str):
            return self._spelling.sub(lambda match: self._stand_ins[match[0]], value)
        if isinstance(value, Mapping):
            return {self._hide(key): self._hide(item) for key, item in value.items()}
        return [self._hide(item) for item in value] if isinstance(value, list) else value

    def _spell(self, text: str, region: tuple[int, int]) -> tuple[str, tuple[int, int], list[tuple[int, int]]]:
        """A rendered text with its spellings back, a region of it moved along, and where they are."""
        fakes: list[tuple[int, int]] = []
        start, stop = region
        longer = 0  # by how much the text has grown so far
        for match in self._stand_in.finditer(text):
            at, spelling = match.start(), self._spelled[match[0]]
            fakes.append((at + longer, at + longer + len(spelling)))
            more = len(spelling) - len(match[0])
            longer += more
            start += more * (at < region[0])
            stop += more * (at < region[1])
        return self._stand_in.sub(lambda match: self._spelled[match[0]], text), (start, stop), fakes

    def _tokenize(
        self, text: str, region: tuple[int, int], fakes: list[tuple[int, int]]
    ) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Token ids and their places in a text; special tokens spelled by a content become its ordinary tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for token, (left, right) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            own: tuple[int, ...] = (token,)
            span = (left, right)
            if token in self._special_ids:
                if region[0] <= left < right <= region[1] or any(left < end and right > start for start, end in fakes):
                    own = self._ordinary(text[left:right])
                else:
                    span = (right, right)  # structure, even where it takes in spaces of a content beside it
            ids += own
            spans += [span] * len(own)
        return tuple(ids), spans

    def _ordinary(self, spelling: str) -> tuple[int, ...]:
        """Token ids of a special token's spelling as text."""
        if spelling not in self._as_text:
            ids = self.tokenizer(spelling, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if set(ids) & self._special_ids:
                # It is special to the template alone, or a word of the vocabulary: cut it, so that it is not found.
                ids = [i for char in spelling for i in self.tokenizer(char, add_special_tokens=False)["input_ids"]]
            self._as_text[spelling] = tuple(ids)
        return self._as_text[spelling]
