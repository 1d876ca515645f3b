"""Checkpoints of a training run, from which a killed run resumes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime import SparseRMError, reason, replacing_folder

if TYPE_CHECKING:
    from sae_lens import SAETrainer

logger = logging.getLogger(__name__)

CHECKPOINT, PROGRESS_FILE = "checkpoint", "progress.json"


def save_checkpoint(trainer: SAETrainer, folder: Path, position: int, run: Mapping[str, Any]) -> None:
    """Write a checkpoint under a new name, then remove the previous one, so that a kill leaves one of them complete.

    Args:
        trainer: Trainer to save.
        folder: Folder of the checkpoints.
        position: Position of the next batch of tokens.
        run: Settings and fingerprints of the run, which a resumed run must share.
    """
    newest = folder / str(trainer.n_training_steps)
    with replacing_folder(newest) as temporary:
        trainer.save_checkpoint(".", temporary)
        (temporary / PROGRESS_FILE).write_text(json.dumps({"position": position, "run": run}))
    for other in folder.iterdir():
        if other != newest:
            shutil.rmtree(other)


def resume(trainer: SAETrainer, folder: Path, run: Mapping[str, Any]) -> int:
    """Load the newest checkpoint, if there is one, into a trainer.

    Args:
        trainer: New trainer.
        folder: Folder of the checkpoints.
        run: Settings and fingerprints of this run.

    Returns:
        Position of the next batch of tokens.

    Raises:
        SparseRMError: The checkpoint belongs to another run, or is broken.
    """
    checkpoints = [path for path in folder.glob("*") if path.name.isdigit()]
    if not checkpoints:
        return 0
    newest = max(checkpoints, key=lambda path: int(path.name))
    try:
        progress = json.loads((newest / PROGRESS_FILE).read_text())
        other = sorted(key for key in {*run, *progress["run"]} if run.get(key) != progress["run"].get(key))
        if other:
            raise SparseRMError(
                f"{folder} holds a run with another {other[0]} ({progress['run'].get(other[0])}, not "
                f"{run.get(other[0])}): remove that folder, or name another output folder."
            )
        trainer.sae.load_weights_from_checkpoint(newest)
        trainer.load_trainer_state(newest)
    except SparseRMError:
        raise
    except Exception as error:  # torch and safetensors raise a dozen kinds
        raise SparseRMError(f"The checkpoint {newest} is broken ({reason(error)}): remove that folder.") from error
    logger.info("Resuming after %s of %s steps.", trainer.n_training_steps, trainer.cfg.total_training_steps)
    return int(progress["position"])
