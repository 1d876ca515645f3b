"""The SAEs that sae-lens' registry lists for a base model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SparseRMError

# What is in the names of SAEs on anything else than the residual stream before or after a layer.
NOT_RESIDUAL = re.compile(
    r"att|mlp|transcoder|clt|crosscoder|hook[-_]z|lx[am]|lxtc|resid[-_]mid|embedding", re.IGNORECASE
)
VARIANT = re.compile(r"-(it|instruct|pt|base|chat|hf|small|v\d+(\.\d+)*)$")


@dataclass(frozen=True)
class ListedSAE:
    """An SAE of the registry.

    Attributes:
        name: What `load_sae` takes.
        model: The model that it was trained on, as the registry calls it.
        layer: Number of its layer in its name, counted from 0; None where the name says none.
        width: How many latents it has, as its name says: `16k`, or `8x` as many as there are dimensions; empty where
            the name does not say.
        l0: Latents that fire on a token, on average; None where that is not known.
        explained_variance: None where that is not known.
    """

    name: str
    model: str
    layer: int | None
    width: str
    l0: float | None
    explained_variance: float | None


def find_saes(base: str) -> list[ListedSAE]:
    """List the residual-stream SAEs for a base model, those of the earliest layers first.

    An SAE that was trained on the base of an instruction-tuned model fits that one too, and is listed.

    Args:
        base: Id of the base model on the Hub.

    Raises:
        SparseRMError: There is none.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    found = []
    for release, listed in get_pretrained_saes_directory().items():
        if _family(listed.model) != _family(base):
            continue
        for sae_id, path in listed.saes_map.items():
            name = f"{release}/{sae_id}"
            if NOT_RESIDUAL.search(f"{name} {path}"):
                continue
            l0, variance = listed.expected_l0.get(sae_id), listed.expected_var_explained.get(sae_id)
            known = bool(l0)  # where nothing was measured the registry says 0 and 1
            layer = _first(r"(?:layer[s_.]*|blocks\.|^l|/l|L)(\d+)", sae_id) or _first(r"(?:layer[s_.]*|L)(\d+)", path)
            width = _first(r"(?:width[-_]|[-_]w)(\d\w*?)(?:[-/_]|$)", name) or _first(r"(\d+x)", f"{sae_id} {path}")
            found.append(
                ListedSAE(
                    name=name,
                    model=listed.model,
                    layer=int(layer) if layer else None,
                    width=width or "",
                    l0=l0 if known else None,
                    explained_variance=variance if known else None,
                )
            )
    if not found:
        raise SparseRMError(
            f"sae-lens' registry lists no SAE on the residual stream of {base!r}: train one with `sparserm sae train`."
        )
    return sorted(found, key=lambda sae: (-1 if sae.layer is None else sae.layer, sae.name))


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _family(name: str) -> str:
    """The name of a model without its owner and its variant: `google/gemma-2-2b-it` is of the family `gemma22b`."""
    short = name.rpartition("/")[2].casefold().replace("_", "-").removeprefix("meta-")
    while (shorter := VARIANT.sub("", short)) != short:
        short = shorter
    return re.sub(r"[^a-z0-9]", "", short)
