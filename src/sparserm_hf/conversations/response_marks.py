"""Token ids that a chat template writes around responses, as a checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..modeling.text_sparserm import WHITESPACE
from ..runtime import SparseRMError
from .chat_format import QUESTION, TOOL, TOOL_CALL, ChatFormat, added_tokens
from .chat_templates import render
from .messages import Conversation

# Sample texts next to a mark: a neighbour can change how the edges of a mark are tokenised.
QUESTIONS = ("What is it?", "Tell me more.", "x")
ANSWERS = ("It is this.", "\n\nThis.", "1. this", " that", "(no)", "")


def find_marks(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Find the token ids that a chat template writes around responses, for `SparseRMConfig.response_marks`.

    Args:
        tokenizer: A tokenizer with a chat template, see `prepare_tokenizer`.

    Raises:
        SparseRMError: The template refuses a question with its answer.
    """
    chat = ChatFormat.of(tokenizer)
    header, end = chat.assistant_header, chat.end_of_turn.strip()
    added = added_tokens(tokenizer)
    # The first token after the answer is enough: the text after that token may differ.
    ends = [next((content for content in added if end.startswith(content)), end)]
    ends += [tokenizer.eos_token] if tokenizer.eos_token and tokenizer.eos_token not in ends else []
    example = Conversation([{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}])
    rendered = tokenizer(render(tokenizer, example), add_special_tokens=False)["input_ids"]
    reasoned = [f"{header}{chat.begin_of_reasoning}\n", f"{header}{chat.begin_of_reasoning}"]
    # With and without the text that a template may write after the header, such as an empty reasoning block.
    headers = {header + chat.after_header: ANSWERS, header: [chat.after_header + answer for answer in ANSWERS]}
    headers |= {chat.header_after_tool: ANSWERS} if chat.header_after_tool else {}
    asked = [question + chat.before_header for question in QUESTIONS] + [""]
    return {
        "assistant_header": [
            ids for text, answers in headers.items() if header for ids in _variants(tokenizer, text, asked, answers)
        ],
        "other_headers": [
            ids for other in chat.other_headers
            for ids in _variants(tokenizer, other, [*(a + chat.end_of_turn for a in ANSWERS), ""], QUESTIONS)
        ],
        "end_of_turn": [ids for end in ends for ids in _variants(tokenizer, end, ANSWERS, ["", "\n", "\n\n"])],
        "specials": _never_inside(tokenizer, chat),
        "begin_of_reasoning": _variants(
            tokenizer,
            chat.begin_of_reasoning,
            dict.fromkeys([header, header + chat.after_header, header + "\n"]),
            [space + a for space in ("", "\n") for a in (*ANSWERS, "</")],
        ),
        "end_of_reasoning": _variants(
            tokenizer,
            chat.end_of_reasoning,
            [r + space for r in (*reasoned, *QUESTIONS) for space in ("", "\n", "\n\n")],
            [space + a for space in ("", "\n", "\n\n") for a in ANSWERS],
        ),
        "whitespace": whitespace_ids(tokenizer),
        "bos_in_conversation": _leading_bos(tokenizer, rendered),
        "bos_in_text": _leading_bos(tokenizer, tokenizer("x")["input_ids"]),
    }  # fmt: skip


def _never_inside(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> list[int]:
    """Find the special tokens that the template never writes inside an assistant's turn."""
    user = {"role": "user", "content": QUESTION}
    try:
        called = render(tokenizer, Conversation([user, TOOL_CALL], [TOOL]))
    except SparseRMError:
        called = ""
    inside = called.partition(QUESTION)[2].partition(chat.assistant_header)[2] if chat.assistant_header else ""
    inside = chat.begin_of_reasoning + chat.end_of_reasoning + inside.removesuffix(chat.end_of_turn)
    added = tokenizer.added_tokens_decoder.items()
    return [i for i, t in added if t.special and t.content not in inside and i != tokenizer.unk_token_id]


def _variants(
    tokenizer: PreTrainedTokenizerBase, mark: str, before: Iterable[str], after: Iterable[str]
) -> list[list[int]]:
    """Find the token id sequences that a mark becomes between different texts; none if the mark is whitespace."""
    left = len(mark) - len(mark.lstrip())
    bare = mark.strip()
    found: list[list[int]] = []
    for start in before:
        for end in after if bare else ():
            text = start + mark + end
            first, last = len(start) + left, len(start) + left + len(bare)
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            inside = [(token, span) for token, span in spans if span[0] < last and span[1] > first]
            # A token that covers neighbouring text other than whitespace writes more than the mark.
            if not inside or text[inside[0][1][0] : first].strip() or text[last : inside[-1][1][1]].strip():
                continue
            ids = [token for token, _ in inside]
            # The unknown token stands for any word that the vocabulary lacks: it marks nothing.
            if ids not in found and tokenizer.unk_token_id not in ids:
                found.append(ids)
    return found


def whitespace_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find the tokens that are whitespace alone."""
    alphabet = set("ĠĊĉčċČ▁" + WHITESPACE)  # of byte-level and SentencePiece vocabularies
    named = {f"<0x{ord(char):02X}>" for char in WHITESPACE}
    likely = [i for token, i in tokenizer.get_vocab().items() if set(token) <= alphabet or token in named]
    return sorted(i for i in likely if str(tokenizer.decode([i])).isspace() or not str(tokenizer.decode([i])))


def _leading_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    return next((i for i, token in enumerate(ids) if token != tokenizer.bos_token_id), len(ids))
