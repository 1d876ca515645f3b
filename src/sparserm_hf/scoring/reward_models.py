"""Load a reward model with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..base_models import check_tokenizer, longest_text, move
from ..conversations import ChatEncoder
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, kind_and_reason, pad_texts, process_state, reading, shown

TRIAL, TRIAL_TOKENS = "A text that every reward model scores when it is loaded.", 8


def check_reward_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """Read the configuration of a SparseRM checkpoint, without its weights.

    Args:
        name: Folder or Hub id.
        revision: Revision on the Hub.

    Returns:
        The fields of config.json.

    Raises:
        SparseRMError: There is no checkpoint, or it is not a SparseRM.
    """
    try:
        settings, _ = SparseRMConfig.get_config_dict(name, revision=revision)
        kind = settings.get("model_type")
        if kind != SparseRMConfig.model_type:
            raise ValueError(
                f"it is a {kind if isinstance(kind, str) else shown(kind)}, not a SparseRM reward model: name one "
                "that sparserm train wrote."
            )
        SparseRMConfig(**settings)
    except Exception as error:  # the file may hold anything: a list, objects nested a thousand deep
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {kind_and_reason(error)}.") from error
    return settings


def load_reward_model(
    name: str, device: torch.device | str | None = None, dtype: str = "auto", revision: str | None = None
) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
    """Load a reward model and its tokenizer.

    If another process is just replacing the checkpoint, either the old one or the new one is loaded.

    Args:
        name: Folder or Hub id of the reward model.
        device: Device to run on; by default this machine's accelerator, or its CPU if it has none.
        dtype: Data type to run in: `float32`, `bfloat16`, `auto` for the type that training ran in, or `saved` for
            the type of the saved weights.
        revision: Revision on the Hub.

    Returns:
        The reward model and its tokenizer.

    Raises:
        SparseRMError: The checkpoint is missing, broken or not a SparseRM.

    Example:
        ```python
        from sparserm_hf import load_reward_model, score_rows

        model, tokenizer = load_reward_model("my-reward-model")
        rows = [{"prompt": "What is the capital of Italy?", "completion": "The capital of Italy is Rome."}]
        for row in score_rows(model, tokenizer, rows):
            print(row["reward"])
        ```
    """
    if not Path(name).exists() and "/" not in name:
        raise SparseRMError(f"There is no folder {name!r} here, and a reward model on the Hub is named owner/name.")
    device = device or process_state().device
    while True:
        folder = _identity(name)
        try:
            loaded = _load(name, device, dtype, revision)
        except SparseRMError:
            if _identity(name) == folder:
                raise
            continue
        if _identity(name) == folder:  # otherwise files of the old and the new checkpoint may be mixed
            return loaded


def _identity(name: str) -> tuple[int, int] | None:
    """Identify a folder, so that a folder that replaces it differs; None for a repository, whose commits are fixed."""
    about = Path(name).stat() if Path(name).is_dir() else None
    return about and (about.st_ino, about.st_ctime_ns)


def _load(
    name: str, device: torch.device | str, dtype: str, revision: str | None
) -> tuple[SparseRMForSequenceClassification, PreTrainedTokenizerBase]:
    settings = check_reward_model(name, revision)
    dtype = {"auto": settings.get("run_dtype") or "auto", "saved": "auto"}.get(dtype, dtype)
    try:
        model = SparseRMForSequenceClassification.from_pretrained(name, dtype=dtype, revision=revision)
    except Exception as error:  # libraries raise anything for files that do not fit together
        raise SparseRMError(f"The reward model {name!r} cannot be loaded: {kind_and_reason(error)}.") from error
    with reading(f"The tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_tokenizer(tokenizer)
        if not tokenizer.is_fast:
            raise ValueError("it does not tell the character offsets of its tokens: save the fast tokenizer instead")
    model = move(model, device)
    with reading(f"The reward model {name!r} scores nothing: it"):
        text = encoder_of(model, tokenizer).as_text(TRIAL)[:TRIAL_TOKENS]
        ids, mask = pad_texts([text or (0,)], device)
        with torch.inference_mode():
            if not model(ids, mask).logits.isfinite().all():
                raise ValueError("a text has a reward that is not finite")
    return model, tokenizer


def encoder_of(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> ChatEncoder:
    """Make the encoder of a reward model, which turns texts and messages into token ids.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        max_length: Length limit of a text in tokens. A longer text loses its start. The default is the limit of
            training. A text never has more tokens than the base model has positions.

    Example:
        ```python
        from sparserm_hf import load_reward_model
        from sparserm_hf.scoring import encoder_of

        encoder = encoder_of(*load_reward_model("my-reward-model"))
        print(encoder("The capital of Italy is Rome.").ids)
        ```
    """
    limit = longest_text(model.config, max_length or tokenizer.model_max_length)
    vocabulary = model.get_input_embeddings().num_embeddings
    return ChatEncoder(tokenizer, model.config.response_marks, model.config.response_marker_ids, limit, vocabulary)
