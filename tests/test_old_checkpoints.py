"""Checkpoints of version 0.1, which pooled all that follows the last assistant header, keep their rewards."""

import json
import re

import pytest
import torch
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from tiny import tiny_reward_model, tiny_tokenizer

from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
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
    ids = [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in ROWS[:2]]
    by_forward = [loaded(torch.tensor([i]), torch.ones(1, len(i))).logits.item() for i in ids]
    assert by_forward == pytest.approx(REWARDS[pooling][:2], abs=1e-4)


OLD_FIELDS = {
    "latent_sides": ["chosen"] * 3 + ["rejected"] * 3,
    "latent_separations": [0.3, 0.2, 0.1, -0.1, -0.2, -0.3],
    "latent_stabilities": [1.0, 0.8, 0.6, None, 0.4, 1.0],
    "latent_purities": [0.9] * 6,
    "latent_names": [{"name": '"no"', "precision": 0.9, "recall": 0.5, "f1": 0.64}, *[None] * 5],
    "latent_promotes": [[f"w{i}"] for i in range(6)],
    "latent_suppresses": [[] for _ in range(6)],
    "latent_descriptions": {"11": "sport"},
    "latent_labels": {"40": "mine"},
    "steering": {"8": 0.0},
}


def test_the_lists_of_version_0_3_become_records(tmp_path):
    model = tiny_reward_model()
    model.steer({8: 0.0})
    model.save_pretrained(tmp_path)
    save_tokenizer(tiny_tokenizer(), tmp_path)
    expected = [row["reward"] for row in score_rows(*load_reward_model(str(tmp_path), torch.device("cpu")), ROWS)]
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"latents": [latent["id"] for latent in config["latents"]], **OLD_FIELDS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, tokenizer = load_reward_model(str(tmp_path), torch.device("cpu"))
    assert [row["reward"] for row in score_rows(loaded, tokenizer, ROWS)] == expected
    latents = loaded.config.latents
    assert [latent.title for latent in latents] == [
        '"no"',
        "sport",
        "promotes w2",
        "mine",
        "promotes w4",
        "promotes w5",
    ]
    assert [latent.title_f1 for latent in latents] == [0.64, *[None] * 5]
    assert [latent.stability for latent in latents] == OLD_FIELDS["latent_stabilities"]
    assert [latent.side for latent in latents] == OLD_FIELDS["latent_sides"] and loaded.config.steering == {8: 0.0}
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not set(OLD_FIELDS) & set(again) and again["latents"][1]["description"] == "sport"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("latent_sides", ["chosen"], "latent_sides has 1 items, but must have one for each of 6 latents"),
     ("steering", {"3": "x"}, "steering is {'3': 'x'}, but must be an object")],
)  # fmt: skip
def test_their_fields_are_checked(field, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        SparseRMConfig(latents=[3, 11, 8, 40, 5, 21], **{field: value})
