"""Measure the length and the Markdown of responses: style, which a reward should not follow."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedTokenizerBase

from .tokenized_preferences import TokenizedPreferences

# Values of `debias`, and the counts that each stands for: the style controls that chatbot arenas use.
STYLES = {"length": ("tokens",), "format": ("headers", "list items", "bold")}
PATTERNS = {
    "headers": re.compile(r"^ {0,3}#{1,6}\s", re.MULTILINE),
    "list items": re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}


def measure_styles(pairs: TokenizedPreferences, tokenizer: PreTrainedTokenizerBase) -> dict[str, np.ndarray]:
    """Measure the length of responses in tokens, and the amount of Markdown in them.

    Args:
        pairs: N preference pairs.
        tokenizer: The reward model's tokenizer.

    Returns:
        For each count, by its name, its (N, 2) values in the chosen and the rejected responses.
    """
    responses = [list(text.response) for text in pairs.texts]
    written = tokenizer.batch_decode(responses, skip_special_tokens=True)
    counts = {"tokens": [len(response) for response in responses]} | {
        name: [len(pattern.findall(text)) for text in written] for name, pattern in PATTERNS.items()
    }
    sides = np.stack([pairs.chosen, pairs.rejected], axis=1)
    return {name: np.array(of_texts)[sides] for name, of_texts in counts.items()}


def style_differences(styles: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute log(1 + count) of the chosen minus that of the rejected response, as (N, number of styles).

    On this scale, twice as long is the same difference at any length.

    Args:
        styles: (N, 2) counts of the chosen and of the rejected responses, by name.
    """
    return np.stack([np.log1p(counts[:, 0]) - np.log1p(counts[:, 1]) for counts in styles.values()], axis=1)
