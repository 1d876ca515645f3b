"""Write the report on a reward model: one HTML file with its accuracy, its latents, and pairs explained by token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..conversations import TokenizedPreferences
from ..evaluation import (
    EVALUATION_FILE,
    Evaluation,
    RowName,
    SavedRewardModel,
    as_svg,
    draw_accuracy,
    draw_calibration,
    draw_k,
    draw_length,
)
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import SparseRMError, __version__, find_file, replacing_file
from .explained_pairs import ExplainedPair, explain_pairs
from .latent_reports import LatentReport, known_latents, measure_latents
from .pages import render_page

GENERATOR = '<meta name="generator" content="sparserm-hf'
LATENTS = 40  # number of latents in the list
PASSAGES = 3  # number of strongest and of weakest passages of a latent
MOST_CHARACTERS = 1500  # characters that are shown of a turn of the prompt


@dataclass(frozen=True)
class Listed:
    """A latent in the list, with its bar.

    Attributes:
        report: Report on the latent.
        value: Standard deviation of the latent's contribution over the responses, with the sign of its weight. Without
            pairs it is the weight, and without a linear head the separation.
        share: `value` divided by the largest absolute value in the list.
    """

    report: LatentReport
    value: float
    share: float


@dataclass(frozen=True)
class Content:
    """The contents of a report.

    Attributes:
        evaluation: Evaluation of the reward model; None if there is none.
        latents: Reports on the listed latents.
        pairs: Explained pairs, from the lowest to the highest margin.
    """

    evaluation: Evaluation | None
    latents: list[LatentReport]
    pairs: list[ExplainedPair]


def check_report(output: Path) -> None:
    """Raise a `SparseRMError` if the path is a file that is not a report, or if its folder is missing."""
    if output.exists() and GENERATOR not in output.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise SparseRMError(f"{output} exists already and is not a report: name another file, or remove it.")
    if not output.parent.is_dir():
        raise SparseRMError(f"There is no folder {output.parent} to write {output.name} into: make it first.")


def write_report(
    model: str,
    output: Path | str | None = None,
    rows: Any = None,
    examples: int = 24,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """Write the report on a saved reward model: one HTML file.

    Args:
        model: Folder or Hub id of the reward model.
        output: File to write; by default the model's name with `-report.html`, in the current folder.
        rows: Preference pairs to measure the model on and to show, in any of TRL's formats. Without pairs the report
            shows what the checkpoint holds.
        examples: Number of pairs to show, spread evenly over the margins.
        max_length: Length limit in tokens: longer texts lose their start; by default the limit of training.
        dtype: Data type of the base model; `auto` takes the type that training ran in.
        revision: Revision of the reward model on the Hub.
        cache_dir: Folder of cached representations; by default in `HF_HOME`.

    Returns:
        The file.

    Raises:
        SparseRMError: The model cannot be loaded, the pairs are not usable, or the file exists and is not a report.

    Example:
        ```python
        from sparserm_hf import load_preferences, write_report

        write_report("my-reward-model", "report.html", load_preferences("my-test-pairs.jsonl"))
        ```
    """
    path = Path(output or f"{Path(model).name}-report.html")
    check_report(path)
    saved = SavedRewardModel.load(model, dtype, revision)
    if rows is None:
        content = Content(_stored_evaluation(model, revision), known_latents(saved, LATENTS), [])
    else:
        content = _measure(saved, saved.tokenize(rows, max_length), examples, cache_dir)
    with replacing_file(path) as temporary:
        temporary.write_text(_render(Path(model).name, saved.model.config, content), encoding="utf-8")
    return path


def _measure(saved: SavedRewardModel, pairs: TokenizedPreferences, examples: int, cache_dir: Path | None) -> Content:
    evaluation = saved.evaluate(pairs, cache_dir)
    latents = measure_latents(saved, pairs, LATENTS, PASSAGES, cache_dir)
    explained = explain_pairs(saved, pairs, evaluation.margins[RowName.REWARD_MODEL], examples)
    return Content(evaluation, latents, explained)


def _render(name: str, config: SparseRMConfig, content: Content) -> str:
    middle, pairs = len(content.pairs) // 2, content.pairs
    return render_page(
        "report.html",
        name=name,
        version=__version__,
        config=config,
        base=Path(config.base_model_name_or_path).name,
        evaluation=content.evaluation,
        main_row=RowName.REWARD_MODEL,
        plots=_draw(config, content.evaluation),
        latents=_listed(content.latents),
        featured=pairs[middle] if pairs else None,
        pairs=pairs[:middle] + pairs[middle + 1 :],
        claims=_count_claims(pairs),
        most=MOST_CHARACTERS,
    )


def _draw(config: SparseRMConfig, evaluation: Evaluation | None) -> dict[str, Markup]:
    """Draw the plots, by title."""
    plots = {}
    if evaluation:
        for title, draw in (
            ("Accuracy beside the controls", draw_accuracy),
            ("Accuracy by which response is longer", draw_length),
            ("Calibration", draw_calibration),
        ):
            plots[title] = Markup(as_svg(partial(draw, evaluation=evaluation), title))
    if config.k_accuracies:
        title, chosen = "Accuracy by number of latents, cross-validated", len(config.latents) // 2
        plots[title] = Markup(as_svg(partial(draw_k, accuracies=config.k_accuracies, chosen=chosen), title))
    return plots


def _listed(latents: list[LatentReport]) -> list[Listed]:
    """Add the bars to latents."""
    values = []
    for latent in latents:
        if latent.weight is None:
            values.append(latent.separation)
        else:
            values.append(
                latent.weight if latent.importance is None else np.copysign(latent.importance, latent.weight)
            )
    largest = max(map(abs, values), default=0.0) or 1.0
    return [
        Listed(latent, float(value), float(value / largest)) for latent, value in zip(latents, values, strict=True)
    ]


def _count_claims(pairs: list[ExplainedPair]) -> tuple[int, int]:
    """Count the measured contributions that hold, and the measured contributions."""
    effects = [effect for pair in pairs for side in pair.sides for effect in side.explanation.latents]
    tried = [effect.as_stated for effect in effects if effect.removed is not None]
    return sum(map(bool, tried)), len(tried)


def _stored_evaluation(name: str, revision: str | None) -> Evaluation | None:
    file = find_file(name, EVALUATION_FILE, revision)
    return Evaluation.load(file) if file else None
