"""Report metrics to experiment trackers, through the integrations of accelerate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from .checkpoint_folders import LOGS
from .errors import SparseRMError

logger = logging.getLogger(__name__)


def tracker_names(report_to: str) -> list[str]:
    """Split the option `report_to` into names of trackers.

    Args:
        report_to: Names with commas between them; `none` for no tracker.

    Raises:
        SparseRMError: A tracker is unknown.

    Example:
        >>> tracker_names("tensorboard, wandb"), tracker_names("none")
        (['tensorboard', 'wandb'], [])
    """
    names = [name.strip() for name in report_to.split(",")]
    for name in names:
        if name not in ("none", "all", *LOGGER_TYPE_TO_CLASS):
            raise SparseRMError(
                f"report_to names {name!r}, but may name {', '.join(LOGGER_TYPE_TO_CLASS)}, all or none."
            )
    return [name for name in names if name != "none"]


def report_metrics(report_to: str, folder: str, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Send settings and metrics to experiment trackers.

    A failure is logged and not raised, because the trained model must not be lost.

    Args:
        report_to: Names of trackers; see `tracker_names`.
        folder: Output folder, for trackers that write files.
        settings: Settings of the run.
        metrics: Metrics by their names.
    """
    names = tracker_names(report_to)
    if not names:
        return
    try:
        accelerator = Accelerator(log_with=names, project_dir=str(Path(folder) / LOGS))
        accelerator.init_trackers("sparserm", config={k: v for k, v in settings.items() if v is not None})
        accelerator.log(metrics)
        for tracker in accelerator.trackers:  # `end_training` would end the process group too
            tracker.finish()
    except Exception as error:  # trackers may raise anything
        logger.warning("The metrics could not be reported to %s: %s", report_to, error)
