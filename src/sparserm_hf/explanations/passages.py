"""Find the passages of texts that latents fire on, by the stored activations of single tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..conversations import TokenizedText, pooled_positions, token_text
from ..representations import TokenActivations

WINDOW = 12  # tokens on either side of a passage's central token


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens of a response, with the activations of a latent.

    Attributes:
        tokens: Tokens of the passage as text, with their spaces.
        activations: Activation of the latent on each token.

    Example:
        >>> Passage(["Of", " course"], [0.0, 2.5]).strength
        2.5
    """

    tokens: list[str]
    activations: list[float]

    @property
    def strength(self) -> float:
        """Largest activation; 0 for no tokens."""
        return max(self.activations, default=0.0)


@dataclass(frozen=True)
class Passages:
    """The passages of texts in which K latents fire or stay silent.

    Attributes:
        tokenizer: Tokenizer of the reward model.
        texts: The texts.
        found: Activations of the latents on the pooled tokens of some of the texts.
        pooling: Pooling of the reward model.
    """

    tokenizer: PreTrainedTokenizerBase
    texts: list[TokenizedText]
    found: TokenActivations
    pooling: str

    def strongest(self, i: int, count: int) -> list[Passage]:
        """Find the passages where latent i of K is strongest: at most one from a text, and only if it fires there."""
        rows = self._largest_rows(i)
        strengths = self._column(i)[rows]
        order = np.argsort(-strengths, kind="stable")[:count]
        return [self._around(i, int(text), int(rows[text])) for text in order if strengths[text] > 0]

    def silent(self, i: int, count: int) -> list[Passage]:
        """Find passages without any token on which latent i of K fires, spread over the texts."""
        rows = np.linspace(0, self.found.values.shape[0] - 1, 20 * count).astype(int)
        places = np.searchsorted(self.found.starts, rows, side="right") - 1
        fires = self._column(i) > 0
        silent = []
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            window = self._window(place, row)
            if not fires[window.start : window.stop].any():
                silent.append((place, row))
        return [self._around(i, *at) for at in silent[:: max(len(silent) // count, 1)][:count]]

    def of_text(self, i: int, number: int) -> Passage | None:
        """Find the passage of one text where latent i of K is strongest; None if its activations are not stored."""
        place = int(np.searchsorted(self.found.texts, number))
        if place == len(self.found.texts) or self.found.texts[place] != number:
            return None
        return self._around(i, place, int(self._largest_rows(i)[place]))

    def _column(self, i: int) -> np.ndarray:
        """Extract the (tokens,) activations of latent i."""
        return self.found.values[:, [i]].toarray()[:, 0]

    def _largest_rows(self, i: int) -> np.ndarray:
        """Find the row of the token where latent i is strongest, for each text, (n,); the first of equal tokens."""
        values, starts = self._column(i), self.found.starts
        largest = np.maximum.reduceat(values, starts[:-1])
        is_largest = values == np.repeat(largest, np.diff(starts))
        rows = np.where(is_largest, np.arange(len(values)), len(values))
        return np.minimum.reduceat(rows, starts[:-1])

    def _around(self, i: int, place: int, row: int) -> Passage:
        """Take the passage around a row of `found`, from the text at a place in `found`."""
        rows, start = self._window(place, row), int(self.found.starts[place])
        text = self.texts[self.found.texts[place]]
        positions = pooled_positions(text, self.pooling)
        tokens = [token_text(self.tokenizer, text.ids, positions[r - start]) for r in rows]
        return Passage(tokens, self.found.values[rows.start : rows.stop, [i]].toarray()[:, 0].tolist())

    def _window(self, place: int, row: int) -> range:
        """Find the rows around a row, within the same text."""
        start, stop = self.found.starts[place : place + 2].tolist()
        return range(max(start, row - WINDOW), min(stop, row + WINDOW + 1))
