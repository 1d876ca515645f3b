"""Look up descriptions of latents on Neuronpedia."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session
from tqdm.auto import tqdm

from ..runtime import reason, replacing_file
from .naming import shorten_description

logger = logging.getLogger(__name__)

ADDRESS = "https://www.neuronpedia.org/api/feature"
TIMEOUT = 10  # seconds
ID = re.compile(
    r"(?!\.)[\w.-]+/(?!\.)[\w.-]+", re.ASCII
)  # of an SAE; it cannot lead out of the cache folder or the address


def look_up_descriptions(neuronpedia_id: str, latents: Sequence[int], cache_dir: Path) -> dict[str, str]:
    """Look up descriptions of latents. Nothing is raised, so that a training continues without descriptions.

    Descriptions that were looked up before come from the cache. Without a connection, only the cache is used, with a
    warning in the log.

    Args:
        neuronpedia_id: Id of the SAE, such as `gemma-2-2b/12-gemmascope-res-16k`. Ids of another form are not asked.
        latents: Ids of the latents.
        cache_dir: Folder of the cache, which has one file for each SAE.

    Returns:
        Description of each latent that has one, by its id as a string.

    Example:
        >>> look_up_descriptions("no-such-form", [1, 2], Path("cache"))
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
    finally:  # an interrupted look-up keeps the descriptions found so far
        known |= found
        if found:
            _write(file, known)
    return {str(latent): known[str(latent)] for latent in latents if known.get(str(latent))}


def _ask(neuronpedia_id: str, latents: Sequence[int], found: dict[str, str]) -> None:
    """Put the description of each latent into `found`, and stop at the first failure."""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    try:
        for latent in [] if why else tqdm(latents, desc="Neuronpedia", unit="latent", delay=5):
            found[str(latent)] = _look_up(f"{ADDRESS}/{neuronpedia_id}/{latent}")
    except Exception as error:  # errors of the HTTP library must not stop a training
        why = reason(error)
    if why and latents:
        logger.warning(
            "Neuronpedia cannot be asked for the descriptions of %d latents (%s).", len(latents) - len(found), why
        )


def _look_up(address: str) -> str:
    """Return the first description of a latent on one line, or an empty string."""
    answer = get_session().get(address, timeout=TIMEOUT)
    if answer.status_code == 404:
        return ""
    answer.raise_for_status()
    said = [explanation.get("description") for explanation in answer.json().get("explanations") or []]
    return shorten_description(next((text for text in said if text), ""))


def _read(file: Path) -> dict[str, str]:
    """Read the descriptions in a cache file; a missing or broken file has none."""
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
    except OSError as error:  # a full disk, or a folder without permission to write
        logger.warning("The descriptions of Neuronpedia cannot be kept in %s (%s).", file, reason(error))
