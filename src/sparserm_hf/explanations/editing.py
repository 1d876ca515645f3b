"""Correct a reward model by hand: steer its latents, name them, and see what that does before it is kept."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard
from transformers.utils import cached_file

from ..conversations import TokenizedPreferences
from ..evaluation import (
    CONTROLS_FILE,
    EVALUATION_FILE,
    REFERENCE_FILE,
    PairMetrics,
    SavedRewardModel,
    pair_metrics,
    reward_represented,
)
from ..hub_cards.render import PLOT_FILE
from ..runtime import SparseRMError, check_output_dir, replacing_folder, save_tokenizer
from ..scoring import check_reload

SECTION = "## Steering"


@dataclass(frozen=True)
class Effect:
    """What rewards are like on some pairs.

    Attributes:
        metrics: Accuracy and margin.
        mean: Of the rewards of all responses.
        std: Their standard deviation.
    """

    metrics: PairMetrics
    mean: float
    std: float


def edit_model(
    saved: SavedRewardModel,
    factors: dict[int, float],
    labels: dict[int, str],
    pairs: TokenizedPreferences | None = None,
    cache_dir: Path | None = None,
) -> tuple[Effect, Effect] | None:
    """Steer and label latents, in place.

    Args:
        saved: The reward model.
        factors: As `SparseRMForSequenceClassification.steer` takes them.
        labels: What latents are called, by their ids; an empty one takes a label away.
        pairs: To measure the effect on.
        cache_dir: Where their representations are kept.

    Returns:
        What rewards are like before and after, where there are pairs.

    Raises:
        SparseRMError: A latent is not one of the model's, or a factor is not a number.
    """
    config = saved.model.config
    unknown = [latent for latent in labels if latent not in config.latents]
    if unknown:
        raise SparseRMError(f"Latent {unknown[0]} is not one of this model's {len(config.latents)}.")
    steered_before = dict(config.steering)
    try:
        saved.model.steer(factors)
    except ValueError as error:
        raise SparseRMError(str(error)) from error
    named = config.latent_labels | {str(latent): label for latent, label in labels.items()}
    config.latent_labels = {latent: label for latent, label in named.items() if label}
    if pairs is None:
        return None
    representations = saved.represent(pairs.texts, cache_dir)

    def measure(steering: dict[str, float]) -> Effect:
        config.steering = steering
        rewards = reward_represented(saved.model, representations)
        sides = rewards[pairs.chosen], rewards[pairs.rejected]
        return Effect(pair_metrics(sides[0] - sides[1]), float(np.mean(sides)), float(np.std(sides)))

    steered_after = config.steering
    return measure(steered_before), measure(steered_after)


def save_edited(saved: SavedRewardModel, name: str, folder: Path, revision: str | None = None) -> None:
    """Write an edited model beside the one that it came from, its controls and card with it.

    Args:
        saved: The edited model.
        name: Folder or Hub id that it came from.
        folder: Where to write.
        revision: Of `name`, on the Hub.

    Raises:
        SparseRMError: The folder holds something else.
    """
    check_output_dir(folder)

    def original(file: str) -> str | None:
        return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)

    with replacing_folder(folder) as temporary:
        saved.model.save_pretrained(temporary)
        save_tokenizer(saved.tokenizer, temporary)
        for beside in (CONTROLS_FILE, REFERENCE_FILE, EVALUATION_FILE, PLOT_FILE):
            # An evaluation is of the rewards before an edit: only labels leave it true.
            if (file := original(beside)) and not (beside == EVALUATION_FILE and saved.model.config.steering):
                shutil.copyfile(file, temporary / beside)
        if card_file := original("README.md"):
            card = ModelCard.load(card_file)
            card.text = _corrected(card.text, folder.name, _section(saved))
            card.save(temporary / "README.md")
        check_reload(temporary, saved.model, saved.tokenizer)


def _corrected(text: str, name: str, section: str) -> str:
    """A card under another name, with its section on steering anew."""
    text = re.sub(rf"\n{SECTION}\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"^# .*$", lambda _: f"# {name}", text, count=1, flags=re.MULTILINE)
    text = re.sub(r'^name = ".*?"', lambda _: f'name = "{name}"', text, count=1, flags=re.MULTILINE)
    return text.rstrip() + "\n" + section


def _section(saved: SavedRewardModel) -> str:
    config = saved.model.config
    if not config.steering:
        return ""
    rows = [
        f"| {latent} | {config.latent_labels.get(latent, '')} | {factor:g} |"
        for latent, factor in config.steering.items()
    ]
    return "\n".join(
        [
            f"\n{SECTION}\n",
            "Corrected by hand after training: what these latents add to a reward is multiplied. Accuracies, "
            "probabilities and the spread of rewards above are those before it.\n",
            "| latent | label | factor |\n|---|---|---|",
            *rows,
            "",
        ]
    )
