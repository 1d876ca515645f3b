"""What Neuronpedia says of the latents of an SAE."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session
from tqdm.auto import tqdm

from ..runtime import reason, replacing_file
from .naming import one_line

logger = logging.getLogger(__name__)

ADDRESS = "https://www.neuronpedia.org/api/feature"
TIMEOUT = 10  # seconds
ID = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+", re.ASCII)  # of an SAE; none that leads out of the folder or address


def descriptions(neuronpedia_id: str, latents: Sequence[int], cache_dir: Path) -> dict[str, str]:
    """Look up the descriptions of latents, by their ids as strings; those without one are left out.

    What was looked up before comes from the cache. Without a connection that is all there is, and the log says so.
    Nothing is raised: a training goes on without descriptions.

    Args:
        neuronpedia_id: Of the SAE, such as `gemma-2-2b/12-gemmascope-res-16k`; any of another form has none.
        latents: Ids of the latents.
        cache_dir: Where descriptions are kept, one file an SAE.

    >>> descriptions("an SAE of one's own", [1, 2], Path("cache"))
    {}
    """
    if not ID.fullmatch(neuronpedia_id):
        return {}
    file = cache_dir / "neuronpedia" / f"{neuronpedia_id}.json"
    known = _read(file)
    missing = [latent for latent in dict.fromkeys(latents) if str(latent) not in known]
    found: dict[str, str] = {}
    try:
        _ask(neuronpedia_id, missing, found)
    finally:  # an interrupted look-up keeps what it found
        known |= found
        if found:
            _write(file, known)
    return {str(latent): known[str(latent)] for latent in latents if known.get(str(latent))}


def _ask(neuronpedia_id: str, latents: Sequence[int], found: dict[str, str]) -> None:
    """Put the description of each latent into `found`, until the first that cannot be looked up."""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    try:
        for latent in [] if why else tqdm(latents, desc="Neuronpedia", unit="latent", delay=5):
            found[str(latent)] = _look_up(f"{ADDRESS}/{neuronpedia_id}/{latent}")
    except Exception as error:  # of the HTTP library that huggingface_hub brings; none may stop a training
        why = reason(error)
    if why and latents:
        logger.warning(
            "Neuronpedia cannot be asked for the descriptions of %d latents (%s).", len(latents) - len(found), why
        )


def _look_up(address: str) -> str:
    """The first description of a latent, on one line; empty where there is none."""
    answer = get_session().get(address, timeout=TIMEOUT)
    if answer.status_code == 404:
        return ""
    answer.raise_for_status()
    said = [explanation.get("description") for explanation in answer.json().get("explanations") or []]
    return one_line(next((text for text in said if text), ""))


def _read(file: Path) -> dict[str, str]:
    """The descriptions in a cache file; none where it is missing or broken."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}


def _write(file: Path, known: dict[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(file) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    except OSError as error:  # a full disk, or a folder that only others may write to
        logger.warning("The descriptions of Neuronpedia cannot be kept in %s (%s).", file, reason(error))
