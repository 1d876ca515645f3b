"""The SAEs that sae-lens' registry lists for a base model, and the choice of one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .hub_saes import READ_BY_SAE_LENS, READ_HERE

# What is in the names of SAEs on anything else than the residual stream before or after a layer.
NOT_RESIDUAL = re.compile(
    r"att|mlp|transcoder|clt|crosscoder|hook[-_]z|lx[am]|lxtc|resid[-_]mid|embedding", re.IGNORECASE
)
VARIANT = re.compile(r"-(it|instruct|pt|base|chat|hf|small|v\d+(\.\d+)*)$")
ENOUGH = 16_000  # latents


@dataclass(frozen=True)
class ListedSAE:
    """An SAE of the registry.

    Attributes:
        name: What `load_sae` takes.
        model: The model that it was trained on, as the registry calls it.
        layer: The layer whose output it reads, counted from 0; None where its name does not say.
        width: How many latents it has, as its names say: `16k`, or `8x` as many as there are dimensions; empty where
            they do not say.
        l0: Latents that fire on a token, on average; None where that is not known.
        explained_variance: None where that is not known.
    """

    name: str
    model: str
    layer: int | None
    width: str
    l0: float | None
    explained_variance: float | None

    @property
    def latents(self) -> int | None:
        """The width as a round number: `16k` is 16,000. None where it is not known."""
        match = re.fullmatch(r"(\d+)([km]?)", self.width)
        return int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2]] if match else None


def find_saes(base: str) -> list[ListedSAE]:
    """List the residual-stream SAEs for a base model that `load_sae` reads, those of the earliest layers first.

    An SAE that was trained on the base of an instruction-tuned model fits that one too, and is listed.

    Args:
        base: Id of the base model on the Hub.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    found = []
    for release, listed in get_pretrained_saes_directory().items():
        if _family(listed.model) != _family(base) or listed.conversion_func not in READ_HERE | READ_BY_SAE_LENS:
            continue
        # One release on the instruction-tuned Gemma 2 9B is listed as on its base.
        model = "gemma-2-9b-it" if release == "gemma-scope-9b-it-res" else listed.model
        for sae_id, path in listed.saes_map.items():
            name = f"{release}/{sae_id}"
            layer = _layer(sae_id, path)
            if NOT_RESIDUAL.search(f"{name} {path}") or layer == -1:
                continue
            l0, variance = listed.expected_l0.get(sae_id), listed.expected_var_explained.get(sae_id)
            found.append(
                ListedSAE(
                    name=name,
                    model=model,
                    layer=layer,
                    width=_width(name, path, (listed.neuronpedia_id.get(sae_id) or "").rpartition("/")[2]),
                    l0=l0 or None,  # where nothing was measured the registry says 0 and 1
                    explained_variance=None if variance == 1 else variance,
                )
            )
    return sorted(found, key=lambda sae: (-1 if sae.layer is None else sae.layer, sae.name))


def middle_sae(saes: list[ListedSAE], base: str, depth: int) -> ListedSAE | None:
    """Choose the SAE in the middle of a list. The same list always gives the same SAE.

    Each step keeps the best of the SAEs that the step before kept:

    1. The model: SAEs that were trained on the base model itself, if there are any, not on another variant of it.
    2. The layer: the nearest to the middle layer, which is number `depth // 2`, counted from 0; of two that are as
       near, the earlier. (The paper reads layer 13 of 26, 31 of 42 and 15 of 32.)
    3. The width: the smallest with at least 16k latents, else the largest. An unknown width comes last.
    4. The L0: the median, of two the lower. An unknown L0 comes last.
    5. The name: the first by the alphabet.

    An SAE whose layer is not known, or that is known to explain nothing, is never chosen.

    Args:
        saes: What `find_saes` lists.
        base: Id of the base model on the Hub.
        depth: Its number of layers.

    Returns:
        The SAE; None where there is none to choose.
    """
    known = [sae for sae in saes if sae.layer is not None and (sae.explained_variance or 1) > 0]

    def rank(sae: ListedSAE) -> tuple[bool, int, int, bool, int]:
        layer, latents = sae.layer or 0, sae.latents or 0
        enough = latents >= ENOUGH
        of_another = _short(sae.model) != _short(base)
        return of_another, abs(layer - depth // 2), layer, not enough, latents if enough else -latents

    best = min(map(rank, known), default=None)
    left = [sae for sae in known if rank(sae) == best]
    measured = sorted((sae.l0, sae.name, sae) for sae in left if sae.l0 is not None)
    if measured:
        return measured[(len(measured) - 1) // 2][-1]
    return min(left, key=lambda sae: sae.name, default=None)


def _layer(sae_id: str, path: str) -> int | None:
    """The layer whose output an SAE reads, counted from 0. It is -1 for an SAE on the embedding."""
    number = _first(r"(?:layer[s_.]*|blocks\.|^l|/l|L)(\d+)", sae_id) or _first(r"(?:layer[s_.]*|L)(\d+)", path)
    return int(number) - ("resid_pre" in sae_id) if number else None


def _width(name: str, path: str, on_neuronpedia: str) -> str:
    """How many latents the names of an SAE say that it has."""
    return (
        _first(r"(?:width[-_]|[-_]w)(\d+[km])(?:[-/_]|$)", name)
        or _first(r"[-_](\d+[km])(?:[-_]|$)", on_neuronpedia)
        or _first(r"_fs(\d+)-", on_neuronpedia)
        or _first(r"(\d+x)", f"{name} {path}")
        or ""
    )


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _short(name: str) -> str:
    """The name of a model without its owner: `meta-llama/Meta-Llama-3-8B` is `llama-3-8b`."""
    return name.rpartition("/")[2].casefold().replace("_", "-").removeprefix("meta-")


def _family(name: str) -> str:
    """The name of a model without its owner and its variant: `google/gemma-2-2b-it` is of the family `gemma22b`."""
    short = _short(name)
    while (shorter := VARIANT.sub("", short)) != short:
        short = shorter
    return re.sub(r"[^a-z0-9]", "", short)
