"""Checkpoints of version 0.1, which pooled all that follows the last assistant header, keep their rewards."""

import pytest
import torch
from tiny import tiny_reward_model, tiny_tokenizer

from sparserm_hf.runtime.checkpoints import save_tokenizer
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows


def conversation(*contents):
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]}


ROWS = [
    conversation("w1 w2", "w3 w4 w5"),
    conversation("w1 w2", "w3", "w9", "w7 w8"),
    {"text": "w1 w2 w3 w4"},
    {"text": "<|user|> w1 <|end|> <|assistant|> w5 w6"},
    {"prompt": "w1 ", "completion": "w2"},
    conversation("w1", ""),
]
# What version 0.1 printed for the very same model.
REWARDS = {
    "response_mean": [-0.38222, 12.1668, -5.57355, 1.77486, -3.92503, 1.86659],
    "mean": [-4.89135, -1.08724, -5.57355, -1.60046, -3.92503, -2.42136],
    "last": [0.77517, 6.12065, -9.7062, 9.26952, -3.92503, 1.86659],
}


@pytest.mark.parametrize("pooling", REWARDS)
def test_their_rewards_are_those_of_version_0_1(pooling, tmp_path):
    model = tiny_reward_model(pooling=pooling, response_marks=None, response_marker_ids=[5, 4])
    assert "empty_features" not in model.state_dict()
    model.save_pretrained(tmp_path)
    save_tokenizer(tiny_tokenizer(), tmp_path)
    loaded, tokenizer = load_reward_model(str(tmp_path), torch.device("cpu"))
    rewards = [row["reward"] for row in score_rows(loaded, tokenizer, ROWS)]
    assert rewards == pytest.approx(REWARDS[pooling], abs=1e-4)
    ids = [tokenizer.apply_chat_template(row["messages"])["input_ids"] for row in ROWS[:2]]
    by_forward = [loaded(torch.tensor([i]), torch.ones(1, len(i))).logits.item() for i in ids]
    assert by_forward == pytest.approx(REWARDS[pooling][:2], abs=1e-4)
