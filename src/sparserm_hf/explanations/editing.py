"""Edit a reward model by hand: steer and label latents, and measure the effect on rewards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard

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
from ..hub_cards.render import PLOT_FILE, as_text
from ..modeling.fields_sparserm import FIELDS
from ..modeling.latents_sparserm import Latent
from ..runtime import SparseRMError, check_output_dir, find_file, process_state, replacing_folder, save_tokenizer
from ..scoring import check_reload

SECTION = "## Steering"


@dataclass(frozen=True)
class RewardSummary:
    """Rewards on preference pairs.

    Attributes:
        metrics: Accuracy and margin.
        mean: Mean reward of all responses.
        std: Standard deviation of the rewards.
    """

    metrics: PairMetrics
    mean: float
    std: float


@dataclass(frozen=True)
class EditEffect:
    """Rewards on preference pairs before and after an edit."""

    before: RewardSummary
    after: RewardSummary


def edit_model(
    model: str,
    output_dir: Path | str,
    steering: Mapping[int, float] | None = None,
    labels: Mapping[int, str] | None = None,
    rows: Any = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    pessimism: float | None = None,
) -> EditEffect | None:
    """Write a copy of a saved reward model with steered or labelled latents, or with pessimism.

    Args:
        model: Folder or Hub id of the reward model.
        output_dir: Folder to write.
        steering: Factors by latent id: 0 drops a latent's contribution, 1 restores it.
        labels: Names by latent id; an empty name removes a label.
        rows: Preference pairs to measure the effect on, in any of TRL's formats.
        revision: Revision of the reward model on the Hub.
        cache_dir: Folder of cached representations; by default in `HF_HOME`.
        pessimism: Number of standard deviations over the ensemble to subtract from each reward; by default unchanged.

    Returns:
        Rewards before and after the edit; None without pairs.

    Raises:
        SparseRMError: A latent is not one of the model's, a factor is not a number, the model has no ensemble for
            pessimism, or the folder holds something else than a reward model.

    Example:
        ```python
        from sparserm_hf import edit_model, load_preferences, report_latents

        pairs = load_preferences("my-test-pairs.jsonl")
        latent = report_latents("my-reward-model", pairs, top=1).latents[0].latent
        effect = edit_model("my-reward-model", "corrected", {latent: 0.0}, {latent: "starts with Sure"}, pairs)
        print(effect.before.metrics, effect.after.metrics)
        ```
    """
    folder = Path(output_dir)
    check_output_dir(folder)
    saved = SavedRewardModel.load(model, "saved", revision)
    before = saved.model.config.latents, saved.model.config.pessimism
    apply_edit(saved, steering or {}, labels or {})
    if pessimism is not None:
        _set_pessimism(saved, pessimism)
    effect = _measure_effect(saved, before, saved.tokenize(rows), cache_dir) if rows is not None else None
    if process_state().is_main_process:
        save_edited(saved, model, folder, revision)
    return effect


def apply_edit(saved: SavedRewardModel, steering: Mapping[int, float], labels: Mapping[int, str]) -> None:
    """Steer and label latents of a loaded model, in place; see `edit_model`.

    Raises:
        SparseRMError: A latent is not one of the model's, or a factor is not a number.
    """
    try:
        saved.model.config.change_latents(
            steering=dict(steering), label={latent: label or None for latent, label in labels.items()}
        )
    except ValueError as error:
        raise SparseRMError(str(error)) from error


def _set_pessimism(saved: SavedRewardModel, pessimism: float) -> None:
    config = saved.model.config
    if not FIELDS["pessimism"].holds(pessimism) or (pessimism and not config.ensemble):
        raise SparseRMError(
            f"pessimism is {pessimism} and the reward model's ensemble has {config.ensemble} heads, but pessimism is "
            "a number from 0 and needs an ensemble: train the reward model with --ensemble 20."
        )
    config.pessimism = float(pessimism)


def _measure_effect(
    saved: SavedRewardModel, before: tuple[list[Latent], float], pairs: TokenizedPreferences, cache_dir: Path | None
) -> EditEffect:
    """Measure the rewards with the latents and the pessimism of `before`, and with those of the edited model."""
    config, representations = saved.model.config, saved.represent(pairs.texts, cache_dir)

    def summarise(edit: tuple[list[Latent], float]) -> RewardSummary:
        config.latents, config.pessimism = edit
        rewards = reward_represented(saved.model, representations)
        sides = rewards[pairs.chosen], rewards[pairs.rejected]
        return RewardSummary(pair_metrics(sides[0] - sides[1]), float(np.mean(sides)), float(np.std(sides)))

    after = config.latents, config.pessimism
    return EditEffect(summarise(before), summarise(after))


def save_edited(saved: SavedRewardModel, name: str, folder: Path, revision: str | None = None) -> None:
    """Write an edited model with the controls and the card of the model that it was loaded from.

    Args:
        saved: The edited model.
        name: Folder or Hub id that it was loaded from.
        folder: Folder to write.
        revision: Revision of `name` on the Hub.

    Raises:
        SparseRMError: The folder holds something else than a reward model.
    """
    check_output_dir(folder)
    with replacing_folder(folder) as temporary:
        saved.model.save_pretrained(temporary)
        save_tokenizer(saved.tokenizer, temporary)
        copied = [CONTROLS_FILE, REFERENCE_FILE, PLOT_FILE]
        changed = saved.model.config.steering or saved.model.config.pessimism
        if not changed:  # labels do not change the rewards that an evaluation holds
            copied.append(EVALUATION_FILE)
        for beside in copied:
            if file := find_file(name, beside, revision):
                shutil.copyfile(file, temporary / beside)
        if card_file := find_file(name, "README.md", revision):
            card = ModelCard.load(card_file)
            card.data.model_name = folder.name
            if changed:  # the accuracies of the metadata were measured before the edit
                card.data.eval_results = None
            card.text = _edit_card(card.text, folder.name, _steering_section(saved))
            card.save(temporary / "README.md")
        check_reload(temporary, saved.model, saved.tokenizer)


def _edit_card(text: str, name: str, section: str) -> str:
    """Rename a card, and replace its section on steering."""
    text = re.sub(rf"\n{SECTION}\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"^# .*$", lambda _: f"# {name}", text, count=1, flags=re.MULTILINE)
    text = re.sub(r'^name = ".*?"', lambda _: f'name = "{name}"', text, count=1, flags=re.MULTILINE)
    return text.rstrip() + "\n" + section


def _steering_section(saved: SavedRewardModel) -> str:
    config = saved.model.config
    lines = []
    if config.steering:
        lines += ["The contribution of each of these latents is multiplied by its factor:\n"]
        lines += ["| latent | label | factor |\n|---|---|---|"]
        lines += [
            f"| {latent.id} | {as_text(latent.label or '')} | {latent.steering:g} |"
            for latent in config.latents
            if latent.steering != 1.0
        ]
        lines += [""]
    if config.pessimism:
        lines += [
            f"{config.pessimism:g} standard deviations over the ensemble of {config.ensemble} heads are subtracted "
            "from each reward.\n"
        ]
    if not lines:
        return ""
    before = (
        "Corrected by hand after training. The accuracies, probabilities and rewards above were measured before.\n"
    )
    return "\n".join([f"\n{SECTION}\n", before, *lines])
