"""Name latents after the tokens that they fire on, and score the names on held-out responses.

`Latent.title` in `modeling/latents_sparserm.py` decides by these scores which names are shown as unclear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .token_properties import token_properties

# A name quotes only words that occur so often, and in so many prompts, that the name reveals no private text.
LEAST_OCCURRENCES, LEAST_PROMPTS = 5, 3
PARTS = 4  # most parts of a name
LEAST_PRECISION = 0.25  # of each part, on the tokens that the name is made from
LEAST_GAIN = 0.02  # of F1, from each further part
TRIED = 64  # candidates for the parts of a name
LONGEST_NAME = 60  # characters
LEAST_FIRING = 5  # a latent that fires on fewer tokens gets no name
LONGEST_LINE = 80  # characters of a description


@dataclass(frozen=True)
class Name:
    """Name of a latent, with its scores as a prediction of the held-out tokens that the latent fires on.

    Attributes:
        name: Text, such as `"never", "not" or the first word`.
        precision: Share of the tokens described by the name on which the latent fires.
        recall: Share of the tokens on which the latent fires that the name describes.
        f1: Harmonic mean of precision and recall.

    Example:
        >>> Name.scored('"not"', named=np.array([True, False]), fires=np.array([True, True]))
        Name(name='"not"', precision=1.0, recall=0.5, f1=0.6666666666666666)
    """

    name: str
    precision: float
    recall: float
    f1: float

    @classmethod
    def scored(cls, name: str, named: np.ndarray, fires: np.ndarray) -> Name:
        """Score a name on n held-out tokens; both arrays are (n,) bool: the name describes it, the latent fires."""
        both, says, does = (int(where.sum()) for where in (named & fires, named, fires))
        return cls(name, both / max(says, 1), both / max(does, 1), 2 * both / max(says + does, 1))


def name_latents(
    pieces: Sequence[Sequence[str]], fires: sparse.csr_matrix, groups: Sequence[int]
) -> list[Name | None]:
    """Name K latents after the words, kinds and places of the tokens that they fire on.

    A name is found on the responses to half of the prompts and scored on the responses to the other half. It starts
    with the token property of the best F1. Further properties are added as long as each of them raises the F1.

    Args:
        pieces: Tokens of n responses, with the spaces between the words.
        fires: (tokens, K) nonzero if a latent fires on a token, with the responses one after the other.
        groups: (n,) number of each response's prompt.

    Returns:
        A name for each latent; None if it fires on fewer than five tokens of the first half, or never in the second.

    Example:
        >>> pieces = [["Yes", ",", " it", " is"], ["No", ",", " it", " is"]] * 12
        >>> fires = sparse.csr_matrix(np.array([[1, 0, 0, 0], [0, 0, 0, 0]] * 12).reshape(-1, 1))
        >>> name_latents(pieces, fires, [i // 2 for i in range(24)])
        [Name(name='"yes"', precision=1.0, recall=1.0, f1=1.0)]
    """
    response_of = np.repeat(np.arange(len(pieces)), [len(tokens) for tokens in pieces])  # (tokens,)
    prompt_of = np.unique(groups, return_inverse=True)[1][response_of]  # (tokens,)
    properties = token_properties(pieces)
    texts, holds = properties.texts, properties.holds
    fires = sparse.csr_matrix((fires != 0).astype(np.int64))
    seen, held_out = (np.flatnonzero(prompt_of % 2 == half) for half in (0, 1))
    kept = _supported(texts, holds[seen], response_of[seen], prompt_of[seen])
    texts, holds = [texts[i] for i in kept], holds[:, kept]
    found, tested = holds[seen].tocsc(), holds[held_out].tocsc()
    fires_found, fires_tested = fires[seen].tocsc(), fires[held_out].tocsc()
    both_found, times = np.asarray((found.T @ fires_found).todense()), found.sum(0).A1[:, None]
    scores = _f1(both_found, times, fires_found.sum(0).A1)
    # A name whose tokens the latent hardly ever fires on is taken only if there is no better one.
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
    """Compute F1 from the numbers of tokens that are named and fired on, that are named, and that are fired on."""
    return 2 * both / np.maximum(named + fires, 1)


def _parts(holds: sparse.csc_matrix, fires: np.ndarray, texts: list[str]) -> list[int]:
    """Choose the properties in a name: the first, then each time the property that raises the F1 most.

    Args:
        holds: (tokens, properties) 1 for each property of a token, with the best property first.
        fires: (tokens,) bool, true if the latent fires on the token.
        texts: Text of each property.

    Returns:
        Indices of the chosen properties.
    """
    parts, named = [0], _column(holds, 0)
    score = float(_f1((named & fires).sum(), named.sum(), fires.sum()))
    while len(parts) < PARTS:
        # Only tokens without the chosen properties are counted: dense unions with all properties take seconds.
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
    """Choose the properties that reveal no private text: they quote no word, or a word that occurs often enough.

    Tokens in a row are one occurrence: otherwise, a rare word of many tokens, such as a user name, would pass.

    Args:
        texts: Text of each property.
        holds: (tokens, properties) 1 for each property of a token.
        response_of: (tokens,) number of each token's response.
        prompt_of: (tokens,) number of each token's prompt.

    Returns:
        Indices of the chosen properties.
    """
    of_prompt = sparse.csr_matrix((np.ones(len(prompt_of)), (np.arange(len(prompt_of)), prompt_of)))
    prompts = (holds.T @ of_prompt > 0).sum(1).A1
    goes_on = np.flatnonzero(response_of[1:] == response_of[:-1])
    occurrences = holds.sum(0).A1 - holds[goes_on].multiply(holds[goes_on + 1]).sum(0).A1
    often = (occurrences >= LEAST_OCCURRENCES) & (prompts >= LEAST_PROMPTS)
    return [i for i, text in enumerate(texts) if often[i] or '"' not in text]


def shorten_description(text: str) -> str:
    """Put a description from elsewhere on one line of at most 80 printable characters.

    Example:
        >>> shorten_description("  Says no,   politely")
        'Says no, politely'
    """
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1].rstrip()}…"
