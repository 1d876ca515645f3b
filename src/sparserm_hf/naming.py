"""Names for latents, made of the tokens that they fire on, and tested on other responses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
LIST_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)])\s")
LONGEST_WORD = 24  # characters
LEAST_TOKENS, LEAST_PROMPTS = 5, 3  # that a word occurs in, if it stands in a name: no private text is given away
PARTS = 4  # of a name
LEAST_PRECISION = 0.25
LEAST_GAIN = 0.02  # of F1, by a further part
TRIED = 64  # candidates for the parts of a name, the best ones by themselves
LONGEST_NAME = 60  # characters
LEAST_FIRING = 5  # tokens that a latent fires on, to be named
LONGEST_LINE = 80  # characters of a description by others


@dataclass(frozen=True)
class Name:
    """A name for a latent, and how well it predicts on which tokens of held-out responses the latent fires.

    Attributes:
        name: Such as `"never", "not" or the first word`.
        precision: Share of the named tokens that the latent fires on.
        recall: Share of the tokens that the latent fires on that are named.
        f1: Harmonic mean of the two.
    """

    name: str
    precision: float
    recall: float
    f1: float


def name_latents(
    pieces: Sequence[Sequence[str]], fires: sparse.csr_matrix, groups: Sequence[int]
) -> list[Name | None]:
    """Name K latents after the words, places and kinds of tokens that best predict where they fire.

    A name is found on the responses to half of the prompts and scored on those to the other half. It begins with
    the property of tokens with the best F1, and takes in others while each raises the F1.

    Args:
        pieces: The tokens of n responses, as they stand in the text.
        fires: (tokens, K) nonzero where a latent fires, the tokens of the responses one after the other.
        groups: (n,) number of each response's prompt.

    Returns:
        A name for each latent; None where it fires on fewer than five tokens of the one half, or nowhere in the
        other.

    >>> pieces = [["Yes", ",", " it", " is"], ["No", ",", " it", " is"]] * 12
    >>> fires = sparse.csr_matrix(np.array([[1, 0, 0, 0], [0, 0, 0, 0]] * 12).reshape(-1, 1))
    >>> name_latents(pieces, fires, range(24))
    [None]
    >>> name_latents(pieces, fires, [i // 2 for i in range(24)])
    [Name(name='"yes"', precision=1.0, recall=1.0, f1=1.0)]
    """
    prompt_of = np.repeat(np.unique(groups, return_inverse=True)[1], [len(tokens) for tokens in pieces])  # (tokens,)
    texts, holds = _candidates(pieces)
    fires = sparse.csr_matrix((fires != 0).astype(np.int64))
    seen, held_out = (np.flatnonzero(prompt_of % 2 == half) for half in (0, 1))
    kept = _supported(texts, holds[seen], prompt_of[seen])
    texts, holds = [texts[i] for i in kept], holds[:, kept]
    found, tested = holds[seen].tocsc(), holds[held_out].tocsc()
    fires_found, fires_tested = fires[seen].tocsc(), fires[held_out].tocsc()
    both_found, times = np.asarray((found.T @ fires_found).todense()), found.sum(0).A1[:, None]
    scores = _f1(both_found, times, fires_found.sum(0).A1)
    # A latent that hardly ever fires where a name says so is not called by it, unless there is nothing better.
    scores = np.where(both_found >= LEAST_PRECISION * times, scores, scores / 1000)
    names: list[Name | None] = []
    for k in range(fires.shape[1]):
        where, there = (_column(matrix, k) for matrix in (fires_found, fires_tested))
        best = np.argsort(-scores[:, k], kind="stable")[:TRIED]
        if where.sum() < LEAST_FIRING or not there.any() or not len(best) or not scores[best[0], k]:
            names.append(None)
            continue
        best = best[scores[best, k] > scores[best[0], k] / 100]
        parts = _parts(found[:, best].toarray().astype(bool), where, [texts[i] for i in best])
        named = tested[:, best[parts]].sum(1).A1 > 0
        both = float((named & there).sum())
        precision, recall = both / max(named.sum(), 1), both / there.sum()
        f1 = 2 * both / (named.sum() + there.sum())
        names.append(Name(_joined([texts[best[i]] for i in parts]), float(precision), float(recall), float(f1)))
    return names


def _column(matrix: sparse.csc_matrix, k: int) -> np.ndarray:
    return matrix[:, [k]].toarray()[:, 0] > 0


def _f1(both: np.ndarray, named: np.ndarray, fires: np.ndarray) -> np.ndarray:
    """F1 from how many tokens are both named and fired on, and how many are either; 0 where none is."""
    return 2 * both / np.maximum(named + fires, 1)


def _parts(holds: np.ndarray, fires: np.ndarray, texts: list[str]) -> list[int]:
    """Which of some candidates make up a name: the first, and those that raise the F1 of all together.

    Args:
        holds: (tokens, candidates) bool, the best candidate first.
        fires: (tokens,) bool.
        texts: What each candidate is called.
    """
    parts, named = [0], holds[:, 0]
    score = float(_f1((named & fires).sum(), named.sum(), fires.sum()))
    while len(parts) < PARTS:
        union = holds | named[:, None]
        scores = _f1((union & fires[:, None]).sum(0), union.sum(0), fires.sum())
        following = int(scores.argmax())
        too_long = len(_joined([texts[i] for i in [*parts, following]])) > LONGEST_NAME
        if scores[following] < score + LEAST_GAIN or too_long:
            break
        parts, named, score = [*parts, following], union[:, following], float(scores[following])
    return parts


def _joined(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _supported(texts: list[str], holds: sparse.csr_matrix, prompt_of: np.ndarray) -> list[int]:
    """The candidates that occur often enough, and in enough prompts; what quotes no text always does."""
    of_prompt = sparse.csr_matrix((np.ones(len(prompt_of)), (np.arange(len(prompt_of)), prompt_of)))
    prompts = (holds.T @ of_prompt > 0).sum(1).A1
    often = (holds.sum(0).A1 >= LEAST_TOKENS) & (prompts >= LEAST_PROMPTS)
    return [i for i, text in enumerate(texts) if often[i] or '"' not in text]


def _candidates(pieces: Sequence[Sequence[str]]) -> tuple[list[str], sparse.csr_matrix]:
    """All properties of tokens that a name may be made of, and (tokens, candidates) 1 where one holds.

    Of two that hold on the same tokens, the first is taken: a word, a place or kind, two words, what follows a word.
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
    return [texts[i] for i in order], holds[:, order]


def one_line(text: str) -> str:
    """Put a description by others on one line of printable characters, no longer than a table takes."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1].rstrip()}…"


def _rank(text: str) -> int:
    """The place of a kind of candidate among those that hold on the same tokens."""
    if text.startswith("after"):
        return 3
    return (2 if " " in text else 0) if text.startswith('"') else 1


@dataclass(frozen=True)
class _Words:
    """The words of a response: where they start and stop, in characters, and how they are written."""

    spans: list[tuple[int, int]]
    texts: list[str]

    @classmethod
    def of(cls, text: str) -> _Words:
        found = list(WORD.finditer(text))
        return cls([match.span() for match in found], [match[0] for match in found])


def _properties(tokens: Sequence[str]) -> Iterator[list[str]]:
    """Properties of each token of a response, the most general first."""
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
    """Properties of a token that is part of no word, before the word of a number."""
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
    """Properties of a token that is part of a word."""
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
        properties += _after(words.texts[number - 1])
        if number > 1:
            properties.append(f"after {_quoted(words.texts[number - 2] + ' ' + words.texts[number - 1])}")
        properties.append(_quoted(f"{words.texts[number - 1]} {word}"))
    properties.append(_quoted(word))
    if piece.casefold() != word.casefold() and WORD.fullmatch(piece):
        properties.append(f'"…{piece.casefold()}…"')
    return properties


def _after(word: str) -> list[str]:
    return [f"after {_quoted(word)}"] if len(word) <= LONGEST_WORD else []


def _quoted(text: str) -> str:
    return f'"{text.casefold()}"'.replace('"""', "a quotation mark")
