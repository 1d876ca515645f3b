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
# How often a word occurs, and in how many prompts, if it stands in a name: no private text is given away.
LEAST_OCCURRENCES, LEAST_PROMPTS = 5, 3
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

    >>> Name('"not"', precision=1.0, recall=0.5, f1=2 / 3).name
    '"not"'
    """

    name: str
    precision: float
    recall: float
    f1: float

    @classmethod
    def scored(cls, name: str, named: np.ndarray, fires: np.ndarray) -> Name:
        """Score a name on held-out items: (n,) bool where it says that a latent fires, and where the latent does."""
        both, says, does = (int(where.sum()) for where in (named & fires, named, fires))
        return cls(name, both / max(says, 1), both / max(does, 1), 2 * both / max(says + does, 1))


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
    response_of = np.repeat(np.arange(len(pieces)), [len(tokens) for tokens in pieces])  # (tokens,)
    prompt_of = np.unique(groups, return_inverse=True)[1][response_of]  # (tokens,)
    texts, holds = _candidates(pieces)
    fires = sparse.csr_matrix((fires != 0).astype(np.int64))
    seen, held_out = (np.flatnonzero(prompt_of % 2 == half) for half in (0, 1))
    kept = _supported(texts, holds[seen], response_of[seen], prompt_of[seen])
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
        parts = best[_parts(found[:, best], where, [texts[i] for i in best])]
        names.append(Name.scored(_joined([texts[i] for i in parts]), tested[:, parts].sum(1).A1 > 0, there))
    return names


def _column(matrix: sparse.csc_matrix, k: int) -> np.ndarray:
    return matrix[:, [k]].toarray()[:, 0] > 0


def _f1(both: np.ndarray, named: np.ndarray, fires: np.ndarray) -> np.ndarray:
    """F1 from how many tokens are both named and fired on, and how many are either; 0 where none is."""
    return 2 * both / np.maximum(named + fires, 1)


def _parts(holds: sparse.csc_matrix, fires: np.ndarray, texts: list[str]) -> list[int]:
    """Which of some candidates make up a name: the first, and those that raise the F1 of all together.

    Args:
        holds: (tokens, candidates) 1 where a candidate holds, the best candidate first.
        fires: (tokens,) bool.
        texts: What each candidate is called.
    """
    parts, named = [0], _column(holds, 0)
    score = float(_f1((named & fires).sum(), named.sum(), fires.sum()))
    while len(parts) < PARTS:
        # Counted on the tokens that are not named yet: a dense union of all candidates takes seconds.
        more_both, more_named = (holds.T @ (where & ~named).astype(np.int64) for where in (fires, np.True_))
        scores = _f1((named & fires).sum() + more_both, named.sum() + more_named, fires.sum())
        following = int(scores.argmax())
        too_long = len(_joined([texts[i] for i in [*parts, following]])) > LONGEST_NAME
        if scores[following] < score + LEAST_GAIN or too_long:
            break
        parts, named, score = [*parts, following], named | _column(holds, following), float(scores[following])
    return parts


def _joined(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _supported(
    texts: list[str], holds: sparse.csr_matrix, response_of: np.ndarray, prompt_of: np.ndarray
) -> list[int]:
    """The candidates that occur often enough, and in enough prompts; what quotes no text always does.

    Tokens in a row are one occurrence: a rare word in many pieces, such as a user name, would pass otherwise.

    Args:
        texts: What each candidate is called.
        holds: (tokens, candidates) 1 where a candidate holds.
        response_of: (tokens,) number of each token's response.
        prompt_of: (tokens,) number of each token's prompt.
    """
    of_prompt = sparse.csr_matrix((np.ones(len(prompt_of)), (np.arange(len(prompt_of)), prompt_of)))
    prompts = (holds.T @ of_prompt > 0).sum(1).A1
    goes_on = np.flatnonzero(response_of[1:] == response_of[:-1])
    occurrences = holds.sum(0).A1 - holds[goes_on].multiply(holds[goes_on + 1]).sum(0).A1
    often = (occurrences >= LEAST_OCCURRENCES) & (prompts >= LEAST_PROMPTS)
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
    """Put a description by others on one line of printable characters, no longer than a table takes.

    >>> one_line("  Says no,   politely")
    'Says no, politely'
    """
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
    """The property of coming after some words, unless one of them is too long to be a word of a language."""
    return [f"after {_quoted(' '.join(words))}"] if max(map(len, words)) <= LONGEST_WORD else []


def _quoted(text: str) -> str:
    return "a quotation mark" if text == '"' else f'"{text.casefold()}"'
