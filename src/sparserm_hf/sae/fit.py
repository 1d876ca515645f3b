"""Measure the fit of an SAE to residual-stream tokens, and compare it with the fit of neighbouring set-ups."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..runtime import SparseRMError
from .sinks import ordinary_tokens

MIN_TOKENS = 100  # with fewer, explained variance is noise
CHUNK_TOKENS = 1024  # encoded together; the (tokens, d_sae) activations are the largest tensor

# Measured on the shipped SAE, also with most of its latents removed, and with noise in the base model's weights until
# the SAE explains only 0.4. If the given layer is wrong, the right layer leaves at most 0.91 times as much variance
# unexplained. If the given layer is right, a neighbour leaves at least 1.05 times as much unexplained.
LEAST_GAIN, MOST_UNEXPLAINED = 0.02, 0.95
NOTHING_EXPLAINED = 0.1  # explained variance of an SAE that is useless here; for another base model it is negative
WEAK = 0.5  # explained variance that deserves a warning


@dataclass(frozen=True)
class Fit:
    """Fit of an SAE to residual-stream tokens.

    Attributes:
        tokens: Number of tokens measured.
        sinks: Number of attention sinks, which are not measured.
        longest: Largest norm of a measured token.
        l0: Mean number of latents that fire on a token.
        explained_variance: 1 - |x - reconstruction|^2 / |x - mean|^2, both summed over the tokens: 1 at best, negative
            if the mean of all tokens is closer to them than the reconstructions.
        dead_share: Share of latents that fire on none of these tokens.
        norm_share: Mean of |reconstruction| / |x|.
    """

    tokens: int
    sinks: int
    longest: float
    l0: float
    explained_variance: float
    dead_share: float
    norm_share: float


@dataclass(frozen=True)
class Neighbour:
    """A set-up next to the given one, which would be right after a common mistake.

    Attributes:
        name: Difference to the given set-up, such as `layer 14`.
        remedy: Advice to the user if the SAE fits better in this set-up.
        fit: Fit of the SAE in this set-up.
    """

    name: str
    remedy: str
    fit: Fit


@dataclass(frozen=True)
class Verdict:
    """Decision on the fit of an SAE.

    Attributes:
        fits: True if the SAE fits.
        sentence: Reason for the decision; if the SAE does not fit, it says what to do.
    """

    fits: bool
    sentence: str


@torch.no_grad()
def measure_fit(sae: SparseAutoencoder, tokens: torch.Tensor) -> Fit:
    """Measure the fit of an SAE to (N, d_model) residual-stream tokens.

    Attention sinks are left out: a few sinks carry nearly all of the variance, and every SAE would look perfect.

    Raises:
        SparseRMError: All tokens are the same.

    Example:
        >>> sae = SparseAutoencoder(d_in=2, d_sae=2)
        >>> for name in ("W_enc", "W_dec"):  # it copies positive inputs
        ...     _ = sae.get_buffer(name).copy_(torch.eye(2))
        >>> for name in ("b_enc", "b_dec"):
        ...     _ = sae.get_buffer(name).zero_()
        >>> fit = measure_fit(sae, torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]]))
        >>> fit.explained_variance, fit.l0, fit.dead_share
        (1.0, 2.0, 0.0)
    """
    norms = tokens.norm(dim=-1)
    kept = tokens[ordinary_tokens(norms)]  # (n, d_model)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=tokens.device)
    active = unexplained = norm_share = 0.0
    for x in kept.split(CHUNK_TOKENS):
        latents = sae.encode(x)
        reconstruction = sae.decode(latents, x)
        fired |= (latents > 0).any(0)
        active += (latents > 0).sum().item()
        unexplained += (x - reconstruction).pow(2).sum().item()
        norm_share += (reconstruction.norm(dim=-1) / x.norm(dim=-1)).sum().item()
    variance = (kept - kept.mean(0)).pow(2).sum().item()
    if not variance > 0:
        raise SparseRMError("All tokens are the same, so that there is no variance to explain: give other texts.")
    return Fit(
        tokens=len(kept),
        sinks=len(tokens) - len(kept),
        longest=kept.norm(dim=-1).max().item(),
        l0=active / len(kept),
        explained_variance=1 - unexplained / variance,
        dead_share=1 - fired.float().mean().item(),
        norm_share=norm_share / len(kept),
    )


def clearly_better(neighbour: Fit, fit: Fit) -> bool:
    """Decide if a neighbour explains so much more variance than the given set-up that it must be the right one.

    Neighbouring layers are similar, and on another variant of its base model an SAE explains less in every layer. So
    the share of the unexplained variance that the neighbour removes must be large enough, and the difference too.
    """
    gain = neighbour.explained_variance - fit.explained_variance
    return gain >= LEAST_GAIN and 1 - neighbour.explained_variance <= MOST_UNEXPLAINED * (1 - fit.explained_variance)


def judge(fit: Fit, neighbours: list[Neighbour], where: str, trained_on: str | None = None) -> Verdict:
    """Decide if an SAE fits, from its fit in the given set-up and in the neighbouring set-ups.

    Args:
        fit: Fit in the given set-up.
        neighbours: Neighbouring set-ups with their fits.
        where: Name of the given set-up, such as `layer 15 of google/gemma-2-2b-it`.
        trained_on: Base model that the SAE names, if it names one.
    """
    found = fit.explained_variance
    best = max(neighbours, key=lambda neighbour: neighbour.fit.explained_variance)
    other = best.fit.explained_variance
    if other > NOTHING_EXPLAINED and clearly_better(best.fit, fit):
        return Verdict(
            False,
            f"The SAE does not fit {where}, but {best.name} (explained variance {other:.2f} against {found:.2f}): "
            f"{best.remedy}.",
        )
    if not found > NOTHING_EXPLAINED:
        belongs = f"it was trained on {trained_on}" if trained_on else "it does not say which base model it belongs to"
        return Verdict(
            False,
            f"The SAE fits neither {where} nor a neighbouring set-up (explained variance {found:.2f}, at best "
            f"{other:.2f}): {belongs}; take an SAE of this base model (an instruction-tuned variant is another base "
            "model).",
        )
    weakly = ", but weakly" if found < WEAK else ""
    return Verdict(
        True,
        f"The SAE fits {where}{weakly}: explained variance {found:.2f}, {fit.l0:.0f} latents active on a token.",
    )
