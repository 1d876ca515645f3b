"""How well an SAE fits some residual-stream tokens, and whether it would fit better elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..runtime import SparseRMError

SINK_RATIO = 3.0  # tokens above this many times the median norm are attention sinks
MIN_TOKENS = 100  # with fewer, explained variance is noise
CHUNK_TOKENS = 1024  # encoded at once: (tokens, d_sae) is the largest tensor

# By the shipped SAE, also with most of its latents taken out or the base model's weights shaken until it explains 0.4:
# one layer off, the right layer leaves at most 0.91 times as much unexplained; at the right one, a neighbour at least
# 1.05 times as much.
LEAST_GAIN, MOST_UNEXPLAINED = 0.02, 0.95
NOTHING_EXPLAINED = 0.1  # at or below this an SAE does not know these tokens; a strange base model gives less than 0
WEAK = 0.5  # below this it may be right, but is worth a warning


@dataclass(frozen=True)
class Fit:
    """How well an SAE fits residual-stream tokens.

    Attributes:
        tokens: How many were looked at.
        sinks: How many more were left out for their norm.
        longest: Norm of the longest token that is no sink.
        l0: Mean number of latents that fire on a token.
        explained_variance: 1 - |x - reconstruction|^2 / |x - mean|^2, each summed over the tokens; 1 at best, below 0
            where the mean of all tokens says more than the reconstruction.
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
    """A set-up that would be the right one if something had been mixed up.

    Attributes:
        name: What is different, such as `layer 14`.
        remedy: What to do where it fits better.
        fit: How well the SAE fits there.
    """

    name: str
    remedy: str
    fit: Fit


@dataclass(frozen=True)
class Verdict:
    """Whether an SAE fits, in one sentence that says what to do where it does not."""

    fits: bool
    sentence: str


@torch.no_grad()
def measure_fit(sae: SparseAutoencoder, tokens: torch.Tensor) -> Fit:
    """Measure an SAE on (N, d_model) residual-stream tokens.

    Attention sinks are left out: a few of them are nearly all of the variance, so that every SAE would look perfect.

    Raises:
        SparseRMError: There is no variance in the tokens.
    """
    norms = tokens.norm(dim=-1)
    kept = tokens[norms <= SINK_RATIO * norms.median()]  # (n, d_model)
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
    """Whether a neighbour explains so much more that it must be the right one.

    Neighbouring layers are alike, and an SAE explains less everywhere on another variant of its base model: so what
    counts is how much of what is left unexplained goes away, and a least difference where little is left.
    """
    gain = neighbour.explained_variance - fit.explained_variance
    return gain >= LEAST_GAIN and 1 - neighbour.explained_variance <= MOST_UNEXPLAINED * (1 - fit.explained_variance)


def judge(fit: Fit, neighbours: list[Neighbour], where: str, trained_on: str | None = None) -> Verdict:
    """Compare an SAE's fit with that of its wrong neighbours.

    Args:
        fit: The fit of the set-up as it is.
        neighbours: The set-ups it might have been mixed up with.
        where: The set-up, such as `layer 15 of google/gemma-2-2b-it`.
        trained_on: The base model that the SAE names, if any.
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
            f"The SAE fits neither {where} nor anything beside it (explained variance {found:.2f}, at best "
            f"{other:.2f}): {belongs}; take the SAE of this base model, minding that an instruction-tuned variant is "
            "another one.",
        )
    weakly = ", but weakly" if found < WEAK else ""
    return Verdict(
        True,
        f"The SAE fits {where}{weakly}: explained variance {found:.2f}, {fit.l0:.0f} latents active on a token.",
    )
