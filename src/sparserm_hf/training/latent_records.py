"""Describe the selected latents in records, which the configuration of a reward model holds."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..conversations import TokenizedPreferences, TokenizedText, pooled_token_texts
from ..modeling.latents_sparserm import Latent
from ..representations import Representations
from ..runtime import as_numpy
from ..sae import Name, look_up_descriptions, name_latents
from .directions import LOW_PURITY
from .parts import FrozenParts
from .steps import FittedRewardHead

logger = logging.getLogger(__name__)


def latent_records(
    parts: FrozenParts,
    fitted: FittedRewardHead,
    pairs: TokenizedPreferences,
    texts: Representations,
    pooling: str,
    cache_dir: Path,
) -> list[Latent]:
    """Describe the selected latents, in the order of the features.

    Args:
        parts: SAE, tokenizer and logit lens.
        fitted: The selected latents and their directions.
        pairs: Training pairs.
        texts: Representations of the pairs' texts.
        pooling: Tokens that are pooled, as in `SparseRMConfig`.
        cache_dir: Folder in which Neuronpedia's descriptions are cached.
    """
    selected, selection = fitted.selected, fitted.selected.selection
    latents, site = selection.latents.tolist(), parts.sae.source.get("neuronpedia_id")
    decoder = torch.from_numpy(as_numpy(parts.sae.autoencoder.W_dec)[latents])  # (2K, d_model)
    promotes, suppresses = parts.lens.words(decoder, parts.tokenizer, known_words(pairs.texts, parts.tokenizer))
    names = name_selected(latents, pairs, texts, pooling, parts.tokenizer)
    known = look_up_descriptions(site, latents, cache_dir) if site else {}
    stabilities = selected.firing.stabilities(selected.k)
    records = []
    for i, (number, name) in enumerate(zip(latents, names, strict=True)):
        score = name and {"precision": name.precision, "recall": name.recall, "f1": name.f1}
        records.append(
            Latent(
                id=number,
                side=selection.sides[i],
                separation=round(float(selection.separations[i]), 6),
                stability=stabilities[i],
                purity=round(float(fitted.projection.directions.purities[i]), 6),
                name=name and name.name,
                name_score=score and {measure: round(value, 4) for measure, value in score.items()},
                description=known.get(str(number)),
                promotes=promotes[i] if promotes else [],
                suppresses=suppresses[i] if suppresses else [],
            )
        )
    return records


def known_words(texts: Iterable[TokenizedText], tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Collect the whole words of texts, in lower case."""
    return {
        word
        for text in texts
        for word in re.findall(
            r"[^\W\d_][^\W_]+", str(tokenizer.decode(list(text.ids), skip_special_tokens=True)).casefold()
        )
    }


def name_selected(
    latents: list[int],
    pairs: TokenizedPreferences,
    texts: Representations,
    pooling: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Name | None]:
    """Name latents after the tokens that they fire on, in the texts whose token activations are cached.

    Args:
        latents: Ids of the latents.
        pairs: Training pairs.
        texts: Representations of the pairs' texts.
        pooling: Tokens that are pooled, as in `SparseRMConfig`.
        tokenizer: Tokenizer of the base model.
    """
    found = texts.token_activations(latents)
    group = dict(zip([*pairs.chosen, *pairs.rejected], [*pairs.groups, *pairs.groups], strict=True))
    pieces = [pooled_token_texts(tokenizer, pairs.texts[i], pooling) for i in found.texts]
    return name_latents(pieces, found.values, [group[i] for i in found.texts])


def warn_of_purity(latents: np.ndarray, purities: np.ndarray) -> None:
    """Log the directions whose purity is low."""
    low = np.flatnonzero(purities < LOW_PURITY)
    if len(low):
        worst = low[np.argmin(purities[low])]
        logger.warning(
            "%d of %d directions have a purity (cosine with the latent's decoder direction) below %g; the lowest is "
            "that of latent %d, %.2f. These latents overlap with other selected latents, so part of their terms "
            "in the reward belongs to the others. Choose a smaller --k.",
            len(low),
            len(latents),
            LOW_PURITY,
            latents[worst],
            purities[worst],
        )
