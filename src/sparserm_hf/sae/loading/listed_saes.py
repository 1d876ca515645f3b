"""Find published SAEs in sae-lens' registry: list those of a base model, and choose one at its middle layer.

`hub_saes.py` downloads a listed SAE; `choosing.py` decides between this choice, a preset and the user's SAE.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...runtime import sae_lens_registry
from .hub_saes import READ_BY_SAE_LENS, READ_HERE

# Parts of the names of SAEs that encode something other than the residual stream before or after a layer.
NOT_RESIDUAL = re.compile(
    r"att|mlp|transcoder|clt|crosscoder|hook[-_]z|lx[am]|lxtc|resid[-_]mid|embedding", re.IGNORECASE
)
VARIANT = re.compile(r"-(it|instruct|pt|base|chat|hf|small|v\d+(\.\d+)*)$")
ENOUGH = 16_000  # latents


@dataclass(frozen=True)
class ListedSAE:
    """A published SAE in sae-lens' registry.

    Attributes:
        name: Name of the SAE for `load_sae`.
        model: Model that the SAE was trained on, as the registry names it.
        layer: Layer whose output the SAE encodes, counted from 0; None if unknown.
        width: Number of latents as the SAE's name gives it: `16k`, or `8x` for 8 times d_model; empty if unknown.
        l0: Mean number of latents that fire on a token; None if unknown.
        explained_variance: Share of the residual stream's variance that the SAE explains; None if unknown.

    Example:
        >>> sae = ListedSAE("release/layer_13/width_16k", "gemma-2-2b", 13, "16k", l0=80.0, explained_variance=0.8)
        >>> sae.latents
        16000
    """

    name: str
    model: str
    layer: int | None
    width: str
    l0: float | None
    explained_variance: float | None

    @property
    def latents(self) -> int | None:
        """Number of latents, rounded: 16,000 for the width `16k`. None if the width is empty or a multiple."""
        match = re.fullmatch(r"(\d+)([km]?)", self.width)
        return int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2]] if match else None


def find_saes(base: str) -> list[ListedSAE]:
    """List the residual-stream SAEs of a base model that `load_sae` can load, by layer.

    SAEs of other variants of the model, pretrained or instruction-tuned, are listed too: most of them fit.

    Args:
        base: Id of the base model on the Hub.

    Example:
        ```python
        from sparserm_hf import find_saes

        for sae in find_saes("google/gemma-2-2b-it")[:5]:
            print(sae.name, sae.layer, sae.width)
        ```
    """
    found = []
    for release, listed in sae_lens_registry().items():
        if _family(listed.model) != _family(base) or listed.conversion_func not in READ_HERE | READ_BY_SAE_LENS:
            continue
        # The registry lists this release under the pretrained model.
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
                    l0=l0 or None,  # an L0 of 0 and an explained variance of 1 were not measured
                    explained_variance=None if variance == 1 else variance,
                )
            )
    return sorted(found, key=lambda sae: (-1 if sae.layer is None else sae.layer, sae.name))


def middle_sae(saes: list[ListedSAE], base: str, depth: int) -> ListedSAE | None:
    """Choose an SAE of the middle layer. The same list always gives the same SAE.

    Each step keeps the best of the SAEs that the previous step kept:

    1. Model: SAEs trained on the base model itself are preferred to SAEs of another variant.
    2. Layer: the nearest to the middle layer `depth // 2`, counted from 0; of two equally near layers, the earlier.
       (The paper uses layer 13 of 26, 31 of 42 and 15 of 32.)
    3. Width: the smallest with at least 16k latents, otherwise the largest. An unknown width comes last.
    4. L0: the median; the lower of two medians. An unknown L0 comes last.
    5. Name: the first in alphabetical order.

    An SAE with an unknown layer, or with an explained variance of 0, is never chosen.

    Args:
        saes: SAEs that `find_saes` lists.
        base: Id of the base model on the Hub.
        depth: Number of layers of the base model.

    Returns:
        The SAE; None if there is none to choose.

    Example:
        >>> saes = [ListedSAE(f"release/layer_{i}", "gemma-2-2b-it", i, "16k", 80.0, 0.8) for i in range(26)]
        >>> middle_sae(saes, "google/gemma-2-2b-it", depth=26).layer
        13
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
    """Find the layer whose output an SAE encodes, counted from 0; -1 for an SAE on the embedding."""
    number = _first(r"(?:layer[s_.]*|blocks\.|^l|/l|L)(\d+)", sae_id) or _first(r"(?:layer[s_.]*|L)(\d+)", path)
    return int(number) - ("resid_pre" in sae_id) if number else None


def _width(name: str, path: str, on_neuronpedia: str) -> str:
    """Find the number of latents, such as `16k` or `8x`, in the names of an SAE."""
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
    """Shorten `meta-llama/Meta-Llama-3-8B` to `llama-3-8b`: the name of a model without its owner."""
    return name.rpartition("/")[2].casefold().replace("_", "-").removeprefix("meta-")


def _family(name: str) -> str:
    """Shorten `google/gemma-2-2b-it` to `gemma22b`: the name of a model without its owner and variant."""
    short = _short(name)
    while (shorter := VARIANT.sub("", short)) != short:
        short = shorter
    return re.sub(r"[^a-z0-9]", "", short)
