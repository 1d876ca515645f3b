"""Compare the latents of a reward model with and without its adapter: claims, names, what the SAE explains."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from ..conversations import TokenizedPreferences
from ..evaluation import CheckedClaims, check_claims
from ..modeling.backbone_sparserm import residual_stream
from ..sae import LoadedSAE, measure_fit
from .trained_model import TrainedModel

TOKENS = 4096  # number of tokens of training responses on which the SAE's fit is measured


@dataclass(frozen=True)
class Meaning:
    """Measures of how well the latents of a reward model explain it.

    Attributes:
        explained_variance: Share of the variance of the responses' tokens that the SAE explains, see `Fit`.
        l0: Mean number of latents that fire on a token.
        name_f1: Mean F1 of the latents' names; None without tested names.
        claims: Share of the checked claims that hold; None for an MLP head, or without held-out pairs.
    """

    explained_variance: float
    l0: float
    name_f1: float | None
    claims: float | None

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        sae: LoadedSAE,
        train_pairs: TokenizedPreferences,
        claims: CheckedClaims | None,
    ) -> Meaning:
        """Measure a reward model whose claims are checked; see `compare_meanings` for the other arguments."""
        names = [latent.title_f1 for latent in trained.model.config.latents if latent.title_f1 is not None]
        fit = measure_fit(sae.autoencoder, response_tokens(trained.base_model, train_pairs))
        return cls(
            explained_variance=fit.explained_variance,
            l0=fit.l0,
            name_f1=float(np.mean(names)) if names else None,
            claims=claims.held / claims.claims if claims and claims.claims else None,
        )

    def flat(self, when: str) -> dict[str, float]:
        """Flatten the figures into metrics whose names begin with `when`."""
        return {f"{when}_{name}": value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def response_tokens(base_model: PreTrainedModel, pairs: TokenizedPreferences) -> torch.Tensor:
    """Collect the residual stream of the first responses, (N, d_model) in float32, until there are `TOKENS` tokens.

    The first token of a text, an attention sink, is left out.
    """
    parts: list[torch.Tensor] = []
    for text in pairs.texts:
        ids = torch.tensor([text.ids], device=base_model.device)
        hidden = residual_stream(base_model, ids, torch.ones_like(ids))[0]  # (T, d_model)
        parts.append(hidden[max(text.start, 1) : text.stop].float())
        if sum(map(len, parts)) >= TOKENS:
            break
    return torch.cat(parts)


def compare_meanings(
    adapted: TrainedModel,
    frozen: TrainedModel | None,
    sae: LoadedSAE,
    train_pairs: TokenizedPreferences,
    test_pairs: TokenizedPreferences | None = None,
    claims: CheckedClaims | None = None,
) -> dict[str, float]:
    """Measure a reward model without and with its adapter, as metrics whose names begin with `frozen` and `adapted`.

    Args:
        adapted: The reward model with its adapter.
        frozen: The reward model without its adapter; None if it has no adapter, and then there are no metrics.
        sae: The SAE of both.
        train_pairs: Training pairs; the SAE's fit is measured on some of their texts.
        test_pairs: Held-out pairs, on which the claims without the adapter are checked; None leaves out the claims.
        claims: The claims with the adapter, checked on the same pairs.
    """
    if frozen is None:
        return {}
    before = check_claims(frozen.model, frozen.base_model, test_pairs) if test_pairs else None
    meanings = {
        "frozen": Meaning.of(frozen, sae, train_pairs, before),
        "adapted": Meaning.of(adapted, sae, train_pairs, claims),
    }
    return {name: value for when, meaning in meanings.items() for name, value in meaning.flat(when).items()}
