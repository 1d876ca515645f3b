"""Are the responses that a policy writes still like those that its reward model was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import cached_file

from ..conversations import TokenizedText
from ..evaluation import REFERENCE_FILE, Control, DriftReference, TextReadings, apply_layers, find_twin
from ..modeling.backbone_sparserm import pool_representations, residual_stream
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..modeling.response_sparserm import pooled_tokens
from ..runtime import SparseRMError, as_numpy, batch_tokens, pad_texts, plan_batches

ALARM = 0.03  # share of features outside their range, or of rewards that the twin contradicts, that is too many


def load_reference(name: str, revision: str | None = None) -> DriftReference:
    """The reference that lies beside a checkpoint.

    Raises:
        SparseRMError: There is none.
    """
    file = cached_file(name, REFERENCE_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise SparseRMError(
            f"{name!r} holds no {REFERENCE_FILE}, which says what its training responses were like: train it anew."
        )
    return DriftReference.load(Path(file))


def check_features(reference: DriftReference, config: SparseRMConfig) -> None:
    """Raise a `SparseRMError` unless a reference is of a reward model with as many features."""
    if len(reference.mean) != len(config.latents):
        raise SparseRMError(
            f"{REFERENCE_FILE} tells of {len(reference.mean)} features, but the reward model has "
            f"{len(config.latents)}: it lies beside another reward model than its own."
        )


def read_texts(
    model: SparseRMForSequenceClassification, controls: Sequence[Control], texts: list[TokenizedText]
) -> TextReadings:
    """Read texts; nothing of them is cached.

    Args:
        model: The reward model.
        controls: Its controls, the twin among them.
        texts: The texts.
    """
    config, device = model.config, model.directions.device
    twin = find_twin(controls)
    features, rewards = np.zeros((len(texts), len(config.latents))), np.zeros(len(texts))
    of_twin = None if twin is None else np.zeros(len(texts))
    with tqdm(total=len(texts), desc="Reading", unit="text", delay=2) as bar, torch.inference_mode():
        for batch in plan_batches([len(text.ids) for text in texts], batch_tokens(device)):
            ids, mask = pad_texts([texts[i].ids for i in batch], device)
            hidden = residual_stream(model.model, ids, mask)
            where = pooled_tokens(mask, [texts[i].place for i in batch], config.pooling).to(hidden.device)
            mean = pool_representations(hidden, where, config.representation_norm)
            read = model.project(mean, where.any(-1, keepdim=True), steered=False)
            features[batch] = as_numpy(read)
            rewards[batch] = as_numpy(model.reward(read)[:, 0])
            if twin and of_twin is not None:
                of_twin[batch] = apply_layers(twin.layers, as_numpy(mean))
            bar.update(len(batch))
    return TextReadings(features, rewards, of_twin)
