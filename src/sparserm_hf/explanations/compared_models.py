"""Compare two reward models on preference pairs, and explain their strongest disagreements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers.utils import CONFIG_NAME

from ..conversations import Messages, TokenizedPreferences, parse_preference, row_name, tokenize_preferences
from ..evaluation import SavedRewardModel, reward_represented
from ..modeling.configuration_sparserm import SparseRMConfig
from ..runtime import SparseRMError, find_file, loading, process_state
from ..scoring import ClassifierRewardModel, check_rewards
from .comparison import Comparison, Disagreement
from .explained_pairs import ExplainedPair, explain_pair


@dataclass(frozen=True)
class ScoredPairs:
    """Preference pairs with their rewards by one model.

    Attributes:
        model: The reward model: a SparseRM or another sequence classifier.
        pairs: P preference pairs in the model's tokens.
        margins: (P,) reward differences, chosen minus rejected.
    """

    model: SavedRewardModel | ClassifierRewardModel
    pairs: TokenizedPreferences
    margins: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """(P, 2) lengths of the chosen and of the rejected responses, in tokens."""
        lengths = np.array([len(text.response) for text in self.pairs.texts])
        return lengths[np.stack([self.pairs.chosen, self.pairs.rejected], axis=1)]

    def explain(self, row: int) -> ExplainedPair | None:
        """Explain the pair of a row, given by the row's index; None unless the model is a SparseRM."""
        if not isinstance(self.model, SavedRewardModel):
            return None
        return explain_pair(self.model, self.pairs, self.pairs.rows.index(row))


def compare(
    model: str,
    against: str,
    rows: Any,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    cache_dir: Path | None = None,
    examples: int = 5,
) -> Comparison:
    """Compare two reward models on the same preference pairs.

    Each model is a SparseRM, or any sequence classifier of transformers with one label and a chat template, such as
    TRL's `RewardTrainer` writes. Weights are loaded from safetensors alone, and no code of a model is run. Both models
    are in memory at once.

    Args:
        model: Folder or Hub id of a reward model.
        against: Folder or Hub id of the reward model to compare it with.
        rows: Preference pairs in any of TRL's formats.
        max_length: Length limit of a text in tokens, for both models; by default each has its own.
        dtype: Data type of both models; `auto` takes the type of a SparseRM's training or of a classifier's weights.
        revision: Revision of `model` on the Hub.
        cache_dir: Folder of a SparseRM's cached representations; by default in `HF_HOME`.
        examples: Number of disagreements to explain, the strongest first.

    Returns:
        Accuracies, their paired difference, and the disagreements with their explanations.

    Raises:
        SparseRMError: A model cannot be loaded or is no reward model, or no pair is usable for both.

    Example:
        ```python
        from sparserm_hf import compare, load_preferences

        comparison = compare("my-reward-model", "another-reward-model", load_preferences("my-test-pairs.jsonl"))
        print(comparison)
        for pair in comparison.disagreements:
            print(pair.row, pair.chosen, pair.rejected, pair.margins)
        ```
    """
    if process_state().num_processes > 1:
        raise SparseRMError("Two reward models are compared in one process: start it without a launcher.")
    rows = list(rows) if isinstance(rows, Iterator) else rows
    loaded = [_load(model, dtype, revision), _load(against, dtype)]
    scored = [_score(one, rows, max_length, cache_dir) for one in loaded]
    comparison = _side_by_side((model, against), scored)
    return replace(comparison, disagreements=_explain_strongest(comparison, scored, rows, examples))


def is_sparserm(name: str, revision: str | None = None) -> bool:
    """Tell if a folder or a repository on the Hub holds a SparseRM."""
    with loading(f"The reward model {name!r}"):
        file = find_file(name, CONFIG_NAME, revision)  # the folder of a LoRA adapter has none
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type") if file else None
    return kind == SparseRMConfig.model_type


def _load(name: str, dtype: str, revision: str | None = None) -> SavedRewardModel | ClassifierRewardModel:
    """Load a SparseRM, or another sequence classifier."""
    if is_sparserm(name, revision):
        return SavedRewardModel.load(name, dtype, revision)
    return ClassifierRewardModel.load(name, process_state().device, dtype, revision)


def _score(
    model: SavedRewardModel | ClassifierRewardModel, rows: Any, max_length: int | None, cache_dir: Path | None
) -> ScoredPairs:
    """Score preference pairs.

    Raises:
        SparseRMError: No pair is usable, or a reward is not finite.
    """
    pairs = tokenize_preferences(rows, model.encoder(max_length))
    if isinstance(model, SavedRewardModel):
        rewards = reward_represented(model.model, model.represent(pairs.texts, cache_dir))
    else:
        rewards = model.score(pairs.texts)
    margins = rewards[pairs.chosen] - rewards[pairs.rejected]
    for row, margin in zip(pairs.rows, margins, strict=True):
        check_rewards([margin], row_name(row + 1))
    return ScoredPairs(model, pairs, margins)


def _side_by_side(names: tuple[str, str], scored: Sequence[ScoredPairs]) -> Comparison:
    """Collect the margins of two models on the pairs that both can use.

    Raises:
        SparseRMError: There is no such pair.
    """
    first, second = scored
    shared, *indices = np.intersect1d(first.pairs.rows, second.pairs.rows, return_indices=True)
    if not len(shared):
        raise SparseRMError(
            f"No pair is usable for both {names[0]!r} and {names[1]!r}: each leaves out the pairs that the other can "
            "use; give more pairs, or pairs that are shorter than both length limits."
        )
    return Comparison(
        names=names,
        margins=np.stack([first.margins[indices[0]], second.margins[indices[1]]]),
        tokens=first.tokens[indices[0]],
        rows=shared + 1,
        left_out=len(first.pairs) + sum(first.pairs.left_out.values()) - len(shared),
        disagreements=(),
    )


def _explain_strongest(
    comparison: Comparison, scored: Sequence[ScoredPairs], rows: Any, examples: int
) -> tuple[Disagreement, ...]:
    """Explain the pairs on which two models disagree most."""
    first, second = scored
    strongest = comparison.disagreeing[:examples].tolist()
    given = {number: row for number, row in enumerate(rows, 1) if number in comparison.rows[strongest]}
    found = []
    for i in tqdm(strongest, desc="Explaining", unit="pair", delay=2):
        number = int(comparison.rows[i])
        pair = parse_preference(given[number], row_name(number))
        found.append(
            Disagreement(
                row=number,
                prompt=_as_text(pair.prompt),
                chosen=_as_text(pair.chosen),
                rejected=_as_text(pair.rejected),
                margins=tuple(comparison.margins[:, i].tolist()),
                deviations=tuple(comparison.deviations[:, i].tolist()),
                explanations=(first.explain(number - 1), second.explain(number - 1)),
            )
        )
    return tuple(found)


def _as_text(part: str | Messages) -> str:
    """Write a prompt or a response as text; if there are several messages, each begins with its role."""
    if isinstance(part, str):
        return part
    contents = [message["content"] for message in part]
    roles = [f"{message['role']}: " if len(part) > 1 else "" for message in part]
    return "\n".join(map("".join, zip(roles, contents, strict=True)))
