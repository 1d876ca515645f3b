"""What Neuronpedia says of the latents of an SAE."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session
from tqdm.auto import tqdm

from ..checkpoints import replacing_file
from ..naming import one_line

logger = logging.getLogger(__name__)

ADDRESS = "https://www.neuronpedia.org/api/feature"
TIMEOUT = 10  # seconds


def descriptions(neuronpedia_id: str, latents: Sequence[int], cache_dir: Path) -> dict[str, str]:
    """Look up the descriptions of latents, by their ids as strings; those without one are left out.

    What was looked up before comes from the cache. Without a connection that is all there is, and the log says so.

    Args:
        neuronpedia_id: Of the SAE, such as `gemma-2-2b/12-gemmascope-res-16k`.
        latents: Ids of the latents.
        cache_dir: Where descriptions are kept, one file an SAE.
    """
    file = cache_dir / "neuronpedia" / f"{neuronpedia_id.replace('/', '--')}.json"
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    missing = [] if constants.HF_HUB_OFFLINE else [latent for latent in latents if str(latent) not in known]
    found = {}
    try:
        for latent in tqdm(missing, desc="Neuronpedia", unit="latent", delay=5):
            found[str(latent)] = _look_up(f"{ADDRESS}/{neuronpedia_id}/{latent}")
    except Exception as error:  # of the HTTP library that huggingface_hub brings; none may stop a training
        logger.warning(
            "Neuronpedia cannot be asked for the descriptions of %d latents (%s).",
            len(missing) - len(found),
            type(error).__name__,
        )
    if found:
        known |= found
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(file) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    return {str(latent): known[str(latent)] for latent in latents if known.get(str(latent))}


def _look_up(address: str) -> str:
    """The first description of a latent, on one line; empty where there is none."""
    answer = get_session().get(address, timeout=TIMEOUT)
    if answer.status_code == 404:
        return ""
    answer.raise_for_status()
    explanations = answer.json().get("explanations") or [{}]
    return one_line(str(explanations[0].get("description") or ""))
