"""The cache of representations: its folder, and a limit of its size."""

from __future__ import annotations

import logging
import re
import shutil
import time
from pathlib import Path

from huggingface_hub import constants

logger = logging.getLogger(__name__)

MOST_BYTES = 50 * 2**30
IN_USE = 3600  # seconds after its last use in which no folder is removed: another process may read it


def prune_cache(cache_dir: Path, most_bytes: int = MOST_BYTES) -> None:
    """Remove the least recently used representations from a cache until it is small enough.

    Representations that were used within the last hour stay.

    Args:
        cache_dir: Folder of the cache. Only its folders of representations are touched.
        most_bytes: Limit in bytes.
    """
    folders = [path for path in cache_dir.iterdir() if re.fullmatch(r"[0-9a-f]{32}", path.name)]
    sizes = {path: sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in folders}
    total = sum(sizes.values())
    for path in sorted(folders, key=lambda path: path.stat().st_mtime):
        if total <= most_bytes or time.time() - path.stat().st_mtime < IN_USE:
            break
        logger.info("Removing %s from the cache, which has outgrown %.0f GiB", path, most_bytes / 2**30)
        shutil.rmtree(path, ignore_errors=True)
        total -= sizes[path]


def default_cache_dir() -> Path:
    """Return the default folder of the cache: `sparserm` in `HF_HOME`, beside the cache of the Hub.

    Example:
        >>> default_cache_dir().name
        'sparserm'
    """
    return Path(constants.HF_HOME) / "sparserm"
