"""Measure what the latents of a reward model are worth as explanations, with and without an adapter."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from ..conversations import TokenizedPreferences
from ..evaluation import check_claims
from ..sae import LoadedSAE, measure_sample
from .trained_model import TrainedModel


@dataclass(frozen=True)
class Meaning:
    """Measures of how well the latents of a reward model explain it.

    Attributes:
        explained_variance: Share of the variance of the residual stream that the SAE explains, see `Fit`.
        l0: Mean number of latents that fire on a token.
        purity: Mean cosine of the model's directions with the decoder directions of their latents.
        name_f1: Mean F1 of the latents' names; None without tested names.
        claims: Share of the claims of explanations that hold; None for an MLP head, or without held-out pairs.
    """

    explained_variance: float
    l0: float
    purity: float
    name_f1: float | None
    claims: float | None

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        sae: LoadedSAE,
        train_pairs: TokenizedPreferences,
        test_pairs: TokenizedPreferences | None,
    ) -> Meaning:
        """Measure a reward model; see `compare_meanings` for the arguments."""
        config = trained.model.config
        fit = measure_sample(trained.base_model, sae, config.layer, [list(text.ids) for text in train_pairs.texts])
        names = [latent.title_f1 for latent in config.latents if latent.title_f1 is not None]
        claims = check_claims(trained.model, trained.base_model, test_pairs) if test_pairs else None
        return cls(
            explained_variance=fit.explained_variance,
            l0=fit.l0,
            purity=float(np.mean([latent.purity for latent in config.latents])),
            name_f1=float(np.mean(names)) if names else None,
            claims=claims.held / claims.claims if claims and claims.claims else None,
        )

    def flat(self, when: str) -> dict[str, float]:
        """Flatten the figures into metrics whose names begin with `when`."""
        return {f"{when}_{name}": value for name, value in asdict(self).items() if value is not None}


def compare_meanings(
    adapted: TrainedModel,
    frozen: TrainedModel | None,
    sae: LoadedSAE,
    train_pairs: TokenizedPreferences,
    test_pairs: TokenizedPreferences | None,
) -> dict[str, float]:
    """Measure a reward model without and with its adapter, as metrics whose names begin with `frozen` and `adapted`.

    Args:
        adapted: The reward model with its adapter.
        frozen: The reward model without its adapter; None if it has no adapter, and then there are no metrics.
        sae: The SAE of both.
        train_pairs: Training pairs; the SAE's fit is measured on some of their texts.
        test_pairs: Held-out pairs, on which claims are checked; None leaves out the claims.
    """
    found = {"frozen": frozen, "adapted": adapted} if frozen else {}
    meanings = {when: Meaning.of(trained, sae, train_pairs, test_pairs) for when, trained in found.items()}
    return {name: value for when, meaning in meanings.items() for name, value in meaning.flat(when).items()}
