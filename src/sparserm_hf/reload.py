"""A reload is part of saving: what was written must give the rewards of what is in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from .conversations.encoding import TokenizedText
from .errors import SparseRMError
from .modeling.modeling_sparserm import SparseRMForSequenceClassification
from .scoring import encoder_of, load_reward_model

CONVERSATION = [
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "The capital of Italy is Rome, a city of about three million people."},
]
TOLERANCE = 1e-3  # of a reward, on one device
BETWEEN_DEVICES = 0.1  # of the rewards' standard deviation, where the model in memory runs on another device


def check_reload(folder: Path, model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load a checkpoint that was just written, and compare the reward of a conversation.

    Args:
        folder: The checkpoint.
        model: What was saved.
        tokenizer: Its tokenizer.

    Raises:
        SparseRMError: It cannot be loaded, or gives other token ids or another reward.
    """
    again, their_tokenizer = load_reward_model(str(folder), torch.device("cpu"), "saved")
    text, theirs = (
        encoder_of(of, tokens)(CONVERSATION) for of, tokens in ((model, tokenizer), (again, their_tokenizer))
    )
    if text != theirs:
        raise SparseRMError("The saved tokenizer gives other token ids than the one in memory: nothing was written.")
    expected, found = _reward(model, text), _reward(again, text)
    moved = model.directions.device != again.directions.device
    tolerance = BETWEEN_DEVICES * model.config.reward_std if moved else TOLERANCE * max(abs(expected), 1.0)
    if not abs(found - expected) <= tolerance:
        raise SparseRMError(
            f"The saved model gives the reward {found:.4f} where the one in memory gives {expected:.4f}: nothing was "
            "written. Please report the base model."
        )


@torch.no_grad()
def _reward(model: SparseRMForSequenceClassification, text: TokenizedText) -> float:
    ids = torch.tensor([text.ids], device=model.directions.device)
    return float(model(ids, torch.ones_like(ids)).logits[0, 0])
