"""Encode conversations as token ids with the tokenizer alone, so that no message fakes a turn; shorten long ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .response_sparserm import count_bos, trim
from .special_tokens_sparserm import SpecialTokens

ANSWER = "\ufdd2"  # placeholder for an answer in a rendered text
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # names of the same field in various templates
WHITESPACE = " \t\n\r\v\f"  # single bytes, so that a token of whitespace can be recognised


class EncodedText(NamedTuple):
    """Token ids of a text, and the place of its response in them: first index, index after the last."""

    ids: tuple[int, ...]
    place: tuple[int, int]


def encode_string(text: str, tokenizer: Any, marks: dict[str, Any] | None) -> tuple[int, ...]:
    """Tokenize a string; it gets the begin-of-text tokens that training gave such a text."""
    bos = tokenizer.bos_token
    ids = tuple(tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"])
    return ids if marks is None else with_trained_bos(ids, tokenizer.bos_token_id, marks)


def with_trained_bos(ids: Sequence[int], bos: int | None, marks: dict[str, Any]) -> tuple[int, ...]:
    """Give the token ids of a text as many begin-of-text tokens as the text had in training.

    Args:
        ids: Token ids, without padding.
        bos: Id of the begin-of-text token.
        marks: `SparseRMConfig.response_marks`.
    """
    found, wanted = count_bos(ids, bos, marks)
    return (bos or 0,) * (wanted - found) + tuple(ids[max(found - wanted, 0) :])


def encode_messages(
    messages: Sequence[Mapping[str, Any]],
    render: Callable[[list[dict[str, Any]]], str],
    specials: SpecialTokens,
    tags: tuple[str, str],
    marks: dict[str, Any] | None,
) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """Encode messages so that no content can fake a turn.

    Args:
        messages: They end with the assistant's message.
        render: The chat template: from messages to text.
        specials: Special tokens of the tokenizer.
        tags: Texts that open and close a reasoning block.
        marks: `SparseRMConfig.response_marks`; None for a checkpoint of version 0.1.

    Returns:
        Token ids, and the place of the response; None if `find_response` has to find it.
    """
    last = messages[-1]
    guarded = [guard(message, specials, tags) for message in messages]
    written = render(guarded)
    region, content = (0, 0), last.get("content")
    if isinstance(content, str):
        # Rendered again with a placeholder in the place of the answer, the template shows where the answer stands.
        reasoning = content[: len(content) - len(answer_of(last, tags))]
        marked = guard({**last, "content": reasoning}, specials, tags)
        region = region_between(written, render([*guarded[:-1], marked | {"content": marked["content"] + ANSWER}]))
    text, region, fakes = specials.spell(written, region)
    region = without_whitespace(text, region)
    ids, spans = specials.tokenize(text, region, fakes)
    # A tool call belongs to the response.
    return ids, None if marks is None or last.get("tool_calls") else place_of(ids, spans, region, marks)


def region_between(written: str, around: str) -> tuple[int, int]:
    """Find the answer in a rendered text, by the same text rendered with a placeholder; (0, 0) if it is not found."""
    ahead, found, behind = around.rpartition(ANSWER)
    known = bool(found) and written.startswith(ahead) and written.endswith(behind)
    known = known and len(ahead) + len(behind) <= len(written)
    return (len(ahead), len(written) - len(behind)) if known else (0, 0)


def without_whitespace(text: str, region: tuple[int, int]) -> tuple[int, int]:
    """Leave out the whitespace at both ends of a region: the token before the region may include the space."""
    start, stop = region
    content = text[start:stop]
    return start + len(content) - len(content.lstrip(WHITESPACE)), start + len(content.rstrip(WHITESPACE))


def place_of(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], region: tuple[int, int], marks: dict[str, Any]
) -> tuple[int, int] | None:
    """Find the tokens of a region, without whitespace at its ends; None if there are none."""
    inside = [i for i, (left, right) in enumerate(spans) if max(left, region[0]) < min(right, region[1])]
    start, stop = trim(ids, marks, inside[0], inside[-1] + 1) if inside else (0, 0)
    return (start, stop) if start < stop else None


def reasoning_tags(tokenizer: Any, marks: dict[str, Any] | None) -> tuple[str, str]:
    """Find the texts that open and close a reasoning block, by their token ids in the marks."""
    begin, end = (
        tokenizer.decode(marks[name][0]).strip() if marks and marks[name] else ""
        for name in ("begin_of_reasoning", "end_of_reasoning")
    )
    return begin, end


def answer_of(message: Mapping[str, Any], tags: tuple[str, str]) -> str:
    """Return a content without its leading reasoning block; of a block that is never closed, remove only the tag."""
    content, (begin, end) = message["content"], tags
    if not end or any(message.get(name) for name in REASONING_FIELDS):
        return content
    block, closed, answer = content.partition(end)
    return answer if closed else block.lstrip().removeprefix(begin) if block.lstrip().startswith(begin) else block


def guard(message: Mapping[str, Any], specials: SpecialTokens, tags: tuple[str, str]) -> dict[str, Any]:
    """Hide the spellings of special tokens in a message, except the tags around an assistant's reasoning."""
    guarded: dict[str, Any] = specials.hide(message)
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return guarded
    answer, (begin, end) = answer_of(message, tags), tags
    if answer == content:
        return guarded
    closed = end if content[: len(content) - len(answer)].endswith(end) else ""
    block = content[: len(content) - len(answer) - len(closed)]
    blank = block[: len(block) - len(block.lstrip())]
    opened = begin if block.lstrip().startswith(begin) else ""
    block = block[len(blank + opened) :]
    return guarded | {"content": blank + opened + specials.hide(block) + closed + specials.hide(answer)}


def keep_end(
    ids: tuple[int, ...], places: Sequence[int], most: int, bos: int | None
) -> tuple[tuple[int, ...], list[int]]:
    """Cut a text to at most `most` tokens.

    Tokens after the response are removed first, because the same conversation may come with or without them. Then
    tokens are removed from the start of the text, but a begin-of-text token stays.

    Args:
        ids: Token ids.
        places: Indices of tokens, which are returned as indices in the cut text; the last is the index after the
            response.
        most: Largest number of tokens to keep.
        bos: Id of the begin-of-text token.
    """
    if len(ids) <= most:
        return ids, list(places)
    ids = ids[: max(places[-1], most)]
    head = ids[: int(ids[0] == bos)]
    taken = len(ids) - most
    return head + ids[taken + len(head) :], [max(i - taken, len(head)) if i else 0 for i in places]
