"""Properties of the tokens of a response: their words, kinds and places. The names of latents consist of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
LIST_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)])\s")
LONGEST_WORD = 24  # characters


@dataclass(frozen=True)
class TokenProperties:
    """Properties of the tokens of some responses, in the order of preference.

    Of two properties that hold for the same tokens, a name takes the first in this order: a word, a place or kind, two
    words, `after` a word.

    Attributes:
        texts: Text of each property, such as `"not"` or `the first word`.
        holds: (tokens, properties) sparse matrix, 1 for each property of a token.
    """

    texts: list[str]
    holds: sparse.csr_matrix


def token_properties(pieces: Sequence[Sequence[str]]) -> TokenProperties:
    """Find all properties of the tokens of some responses.

    Args:
        pieces: Tokens of each response, with the spaces between the words.

    Example:
        >>> properties = token_properties([["Yes", "!"]])
        >>> properties.texts[:3], properties.holds.shape
        (['"yes"', '"!"', 'tokens of every kind'], (2, 11))
    """
    numbers: dict[str, int] = {}
    columns: list[int] = []
    counts = [0]
    for tokens in pieces:
        for properties in _properties(tokens):
            columns += [numbers.setdefault(text, len(numbers)) for text in properties]
            counts.append(len(columns))
    holds = sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.int64), columns, counts), shape=(len(counts) - 1, len(numbers))
    )
    texts = list(numbers)
    order = sorted(range(len(texts)), key=lambda i: _rank(texts[i]))
    return TokenProperties([texts[i] for i in order], holds[:, order])


def _rank(text: str) -> int:
    """Return the rank of a property among properties of the same tokens; the lowest is preferred."""
    if text.startswith("after"):
        return 3
    return (2 if " " in text else 0) if text.startswith('"') else 1


@dataclass(frozen=True)
class _Words:
    """Words of a response, with the characters at which they start and stop."""

    spans: list[tuple[int, int]]
    texts: list[str]

    @classmethod
    def of(cls, text: str) -> _Words:
        found = list(WORD.finditer(text))
        return cls([match.span() for match in found], [match[0] for match in found])


def _properties(tokens: Sequence[str]) -> Iterator[list[str]]:
    """Yield the properties of each token of a response, the most general first."""
    text = "".join(tokens)
    words, at, number = _Words.of(text), 0, 0
    last_start = max((match.end() for match in re.finditer(r"[.!?\n](?=\s*\S)", text)), default=0)
    for token in tokens:
        content = token.strip()
        start = at + len(token) - len(token.lstrip())
        at += len(token)
        while number < len(words.spans) and words.spans[number][1] <= start:
            number += 1
        properties = ["tokens of every kind"]
        line = text[text.rfind("\n", 0, start) + 1 : at]
        if LIST_ITEM.match(line):
            properties.append("list items")
        if start >= last_start > 0:
            properties.append("the last sentence")
        if not re.search(r"[.!?\n]", text[:start]):
            properties.append("the first sentence")
        inside = number < len(words.spans) and words.spans[number][0] <= start and content
        yield properties + (_of_word(words, number, content, text) if inside else _of_mark(words, number, token))


def _of_mark(words: _Words, number: int, token: str) -> list[str]:
    """List the properties of a token outside words; `number` is the index of the next word."""
    content = token.strip()
    if not content:
        return ["line breaks"] if "\n" in token else ["spaces"]
    properties = ["punctuation"]
    if content.isprintable() and "\ufffd" not in content and len(content) <= LONGEST_WORD:
        properties.append(_quoted(content))
    if number:
        properties += _after(words.texts[number - 1])
    return properties


def _of_word(words: _Words, number: int, piece: str, text: str) -> list[str]:
    """List the properties of a token inside a word; `number` is the index of the word."""
    word = words.texts[number]
    before = text[: words.spans[number][0]].rstrip(" \"'(*_\u201c\u2018")
    properties = []
    if word[0].isdigit():
        properties.append("numbers")
    if word.isupper() and len(word) > 1:
        properties.append("words in capitals")
    elif word[0].isupper():
        properties.append("capitalised words")
    if number == 0:
        properties.append("the first word")
    if number < 5:
        properties.append("the first five words")
    if number == len(words.texts) - 1:
        properties.append("the last word")
    if not before or before[-1] in ".!?:\n":
        properties.append("the start of a sentence")
    if len(word) > LONGEST_WORD:
        return properties
    if number:
        previous = words.texts[number - 1]
        properties += _after(previous)
        if number > 1:
            properties += _after(words.texts[number - 2], previous)
        if len(previous) <= LONGEST_WORD:
            properties.append(_quoted(f"{previous} {word}"))
    properties.append(_quoted(word))
    if piece.casefold() != word.casefold() and WORD.fullmatch(piece):
        properties.append(f'"…{piece.casefold()}…"')
    return properties


def _after(*words: str) -> list[str]:
    """List the property of following some words; none if a word is too long, as passwords and keys are."""
    return [f"after {_quoted(' '.join(words))}"] if max(map(len, words)) <= LONGEST_WORD else []


def _quoted(text: str) -> str:
    return "a quotation mark" if text == '"' else f'"{text.casefold()}"'
