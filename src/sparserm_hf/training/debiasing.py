"""Styles that rewards must not follow, measured in preference pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..conversations import STYLES, TokenizedPreferences, measure_styles, style_differences
from ..runtime import process_state

logger = logging.getLogger(__name__)


def avoided_styles(
    pairs: TokenizedPreferences, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]
) -> np.ndarray | None:
    """Measure the styles that rewards must not follow.

    Args:
        pairs: N preference pairs.
        tokenizer: Tokenizer of the base model.
        names: Names in `STYLES`.

    Returns:
        (N, styles) difference of each style, chosen minus rejected; None without names.
    """
    if not names:
        return None
    counts = measure_styles(pairs, tokenizer)
    avoided = {style: counts[style] for name in names for style in STYLES[name]}
    differences = style_differences(avoided)
    for style, column in zip(avoided, differences.T, strict=True):
        if process_state().is_main_process and not column.std() > 0:
            logger.info("Debiasing ignores the number of %s: its difference is the same in every pair.", style)
    return differences
