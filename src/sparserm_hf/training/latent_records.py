"""What the configuration of a reward model says of its selected latents."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..base_models import LogitLens
from ..conversations import TokenizedText, pooled_pieces
from ..sae import Name, descriptions, name_latents
from .directions import LOW_PURITY, Directions
from .fitting import HeadFitter
from .selection import Selection

logger = logging.getLogger(__name__)


def latent_fields(
    fitter: HeadFitter,
    selection: Selection,
    directions: Directions,
    lens: LogitLens,
    tokenizer: PreTrainedTokenizerBase,
    neuronpedia_id: str | None,
    cache_dir: Path,
) -> dict[str, Any]:
    """Describe the selected latents, as fields of `SparseRMConfig`.

    Args:
        fitter: It selected the latents.
        selection: The latents.
        directions: What their features are projections on.
        lens: The base model's.
        tokenizer: The base model's.
        neuronpedia_id: Where Neuronpedia has descriptions of the SAE's latents; None where it has none.
        cache_dir: Where these descriptions are kept.
    """
    latents, texts = selection.latents.tolist(), fitter.pairs.texts
    promotes, suppresses = lens.words(
        torch.from_numpy(fitter.decoder[latents]), tokenizer, known_words(texts, tokenizer)
    )
    names = name_selected(fitter, latents, tokenizer)
    return {
        "latents": latents,
        "latent_sides": selection.sides,
        "latent_separations": [round(float(s), 6) for s in selection.separations],
        "latent_stabilities": fitter.stability(),
        "latent_purities": [round(float(purity), 6) for purity in directions.purities],
        "latent_names": [
            name and {k: v if k == "name" else round(v, 4) for k, v in asdict(name).items()} for name in names
        ],
        "latent_descriptions": descriptions(neuronpedia_id, latents, cache_dir) if neuronpedia_id else {},
        "latent_promotes": promotes,
        "latent_suppresses": suppresses,
    }


def known_words(texts: Iterable[TokenizedText], tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The words of some texts, in lower case: pieces of words are not among them."""
    return {
        word
        for text in texts
        for word in re.findall(
            r"[^\W\d_][^\W_]+", str(tokenizer.decode(list(text.ids), skip_special_tokens=True)).casefold()
        )
    }


def name_selected(fitter: HeadFitter, latents: list[int], tokenizer: PreTrainedTokenizerBase) -> list[Name | None]:
    """Name latents after what they fire on in the training responses whose tokens the representations keep."""
    pairs, found = fitter.pairs, fitter.texts.token_activations(latents)
    group = dict(zip([*pairs.chosen, *pairs.rejected], [*pairs.groups, *pairs.groups], strict=True))
    pieces = [pooled_pieces(tokenizer, pairs.texts[i], fitter.args.pooling) for i in found.texts]
    return name_latents(pieces, found.values, [group[i] for i in found.texts])


def warn_of_purity(latents: np.ndarray, purities: np.ndarray) -> None:
    """Say which directions are little like those of the SAE."""
    low = np.flatnonzero(purities < LOW_PURITY)
    if len(low):
        worst = low[np.argmin(purities[low])]
        logger.warning(
            "%d of %d directions have a purity (cosine with the SAE's own direction) below %g, latent %d the lowest, "
            "%.2f: the selected latents overlap there, and what one adds is partly its neighbours'. Choose a smaller "
            "--k.",
            len(low),
            len(latents),
            LOW_PURITY,
            latents[worst],
            purities[worst],
        )
