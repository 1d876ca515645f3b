"""Joint training: fit a head for each of several objectives, while the base model runs only once over all texts.

The result is the reward model that `combine` makes of separately trained models, with weight 1 for each objective.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from ..base_models import move
from ..conversations import TokenizedPreferences, TokenizedText
from ..evaluation import DriftReference
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Representations
from ..runtime import as_numpy, process_state
from .assembly import assemble_model
from .combined_heads import Member
from .combining import assemble, measure_rewards, weigh_blindly
from .config import SparseRMTrainingConfig
from .debiasing import avoided_styles
from .latent_records import latent_records
from .objective_rows import naming
from .parts import FrozenParts
from .represented_texts import PairIndices, RepresentedTexts
from .run_facts import training_metrics, validation_metrics
from .steps import FittedRewardHead, fit_reward_head

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JointlyTrained:
    """The result of a joint training.

    Attributes:
        model: The combined reward model.
        reference: Statistics of the training responses of all objectives.
        metrics: Metrics of the training.
    """

    model: SparseRMForSequenceClassification
    reference: DriftReference
    metrics: dict[str, float]


def join_pairs(parts: Sequence[TokenizedPreferences]) -> TokenizedPreferences:
    """Join the pairs of several objectives; a text that objectives share is listed once.

    The texts of the objectives alternate, because latents are named after the first texts in the list.
    """
    if len(parts) == 1:
        return parts[0]
    alternating = (text for texts in zip_longest(*(part.texts for part in parts)) for text in texts if text)
    position = {text: i for i, text in enumerate(dict.fromkeys(alternating))}
    first_group = np.cumsum([0, *(max(part.groups) + 1 for part in parts)]).tolist()
    left_out = sum((Counter(part.left_out) for part in parts), Counter[str]())
    return TokenizedPreferences(
        texts=list(position),
        chosen=[position[part.texts[i]] for part in parts for i in part.chosen],
        rejected=[position[part.texts[i]] for part in parts for i in part.rejected],
        margins=[margin for part in parts for margin in part.margins],
        groups=[first + group for first, part in zip(first_group, parts, strict=False) for group in part.groups],
        left_out=dict(left_out),
        truncated=sum(part.truncated for part in parts),
        rows=[row for part in parts for row in part.rows],
    )


def train_objectives(
    parts: FrozenParts,
    objectives: Mapping[str, TokenizedPreferences],
    joined: TokenizedPreferences,
    represent: Callable[[list[TokenizedText]], Representations],
    args: SparseRMTrainingConfig,
    cache_dir: Path,
) -> JointlyTrained:
    """Train a head for each objective on its own pairs, and combine the heads with a weight of 1 for each.

    Args:
        parts: Cut base model, SAE and tokenizer.
        objectives: Pairs of each objective.
        joined: The pairs of all objectives; see `join_pairs`.
        represent: Function that represents texts with the base model and the SAE.
        args: Settings, the same for each objective.
        cache_dir: Folder in which Neuronpedia's descriptions are cached.

    Raises:
        SparseRMError: An objective cannot be trained, or the heads do not fit into the base model's dimensions.
    """
    started = time.perf_counter()
    represented, position = represent(joined.texts), {text: i for i, text in enumerate(joined.texts)}
    fitting, metrics, members = time.perf_counter(), dict[str, float](), []
    for name, pairs in objectives.items():
        with naming(name):
            own = represented.take(np.array([position[text] for text in pairs.texts]))
            fitted = _fit(parts, pairs, own, args)
            latents = latent_records(parts, fitted, pairs, own, args.pooling, cache_dir)
        model = assemble_model(parts, fitted, args, latents)
        members.append(Member.of(name, model))
        metrics |= validation_metrics(fitted.head, f"{name}_")
        if process_state().is_main_process:
            logger.info("Objective %s: a head on %d latents", name, len(latents))
    model = assemble(move(model, process_state().device), members)
    weigh_blindly(model, members)
    _, reference = measure_rewards(model, represented)
    trainable = sum(member.weight.size + 1 for member in members)
    metrics |= training_metrics(joined, parts, trainable, fitting - started, time.perf_counter() - fitting)
    return JointlyTrained(model, reference, metrics)


def _fit(
    parts: FrozenParts, pairs: TokenizedPreferences, represented: Representations, args: SparseRMTrainingConfig
) -> FittedRewardHead:
    styles = avoided_styles(pairs, parts.tokenizer, args.debias_names)
    texts = RepresentedTexts.of(represented, as_numpy(parts.sae.autoencoder.W_dec))
    return fit_reward_head(texts, PairIndices.of(pairs, styles), args)
