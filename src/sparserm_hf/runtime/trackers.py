"""Metrics to experiment trackers, through accelerate's usual integrations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from .checkpoints import LOGS
from .errors import SparseRMError

logger = logging.getLogger(__name__)


def tracker_names(report_to: str) -> list[str]:
    """The trackers that `report_to` names, none for `none`.

    Raises:
        SparseRMError: One of them is not known.
    """
    names = [name.strip() for name in report_to.split(",")]
    for name in names:
        if name not in ("none", "all", *LOGGER_TYPE_TO_CLASS):
            raise SparseRMError(
                f"report_to names {name!r}; it may name {', '.join(LOGGER_TYPE_TO_CLASS)}, all or none."
            )
    return [name for name in names if name != "none"]


def report_metrics(report_to: str, folder: str, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    """Send settings and metrics to the trackers; where that fails, say so and go on: the model is worth more."""
    names = tracker_names(report_to)
    if not names:
        return
    try:
        accelerator = Accelerator(log_with=names, project_dir=str(Path(folder) / LOGS))
        accelerator.init_trackers("sparserm", config={k: v for k, v in settings.items() if v is not None})
        accelerator.log(metrics)
        for tracker in accelerator.trackers:  # not end_training, which takes the process group down with it
            tracker.finish()
    except Exception as error:  # trackers raise whatever they like
        logger.warning("The metrics could not be reported to %s: %s", report_to, error)
