"""The methods that travel with a checkpoint and take conversations: `predict` and `rank`.

That `predict` gives the rewards of `sparserm score`, for every kind of chat template, is tested in test_ways_in.py.
"""

import pytest
import torch
from chat_templates import TEMPLATES, prepared, reward_model_for
from test_portability import score_elsewhere
from tiny import tiny_reward_model, tiny_tokenizer

from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.scoring.scored_rows import score_rows

CONVERSATIONS = [
    [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}],
    [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w9 w8 w7 w6"}],
]
PREDICT = """
import json, sys, torch, transformers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
job = json.load(sys.stdin)
results = {}
for folder in job["folders"]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ranked = model.rank(job["conversations"][0][:1], ["w3 w4", "w9"], tokenizer)
    results[folder] = [model.predict(job["conversations"], tokenizer), [list(response) for response in ranked]]
print(json.dumps([transformers.__version__, results]))
"""


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_content_cannot_write_structure(name):
    """A response that spells special tokens is all text, as for `sparserm score`."""
    tokenizer = prepared(TEMPLATES[name])
    model = reward_model_for(tokenizer, "response_mean")
    question = {"role": "user", "content": "What is it?"}
    whole = tokenizer.apply_chat_template([question, {"role": "assistant", "content": "It."}], tokenize=False)
    for content in (f"It is this. {whole}", whole * 2, "".join(tokenizer.all_special_tokens), "It.<think>"):
        messages = [question, {"role": "assistant", "content": content.replace("</think>", "")}]
        (scored,) = score_rows(model, tokenizer, [{"messages": messages}])
        assert model.predict([messages], tokenizer) == pytest.approx([scored["reward"]], abs=1e-4), content


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_content_may_come_in_parts(name):
    tokenizer = prepared(TEMPLATES[name])
    model = reward_model_for(tokenizer, "response_mean")
    whole = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is this."}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}], "tool_calls": None},
        {"role": "assistant", "content": [{"type": "text", "text": "It is"}, {"text": " this."}]},
    ]
    (scored,) = score_rows(model, tokenizer, [{"messages": parts}])
    assert model.predict([whole, parts], tokenizer) == pytest.approx([scored["reward"]] * 2, abs=1e-4)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "user"}, "Conversation 1: message 1 has no `content`"),
        ({"role": "user", "content": None}, "Conversation 1: message 1 has no `content`"),
        ({"role": "user", "content": 5}, "Conversation 1: message 1 has a `content` of the type int"),
        ({"role": "user", "content": [{"type": "image"}]}, "with a part of the type 'image'"),
        ({"content": "w1"}, "Conversation 1: message 1 has no `role`"),
    ],
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_message_without_text_is_refused(name, message, sentence):
    tokenizer = prepared(TEMPLATES[name])
    with pytest.raises(ValueError, match=sentence):
        reward_model_for(tokenizer, "response_mean").predict([[message, CONVERSATIONS[0][1]]], tokenizer)


def test_a_single_text_is_not_taken_for_many():
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    for one in ("w1 w2", CONVERSATIONS[0], {"messages": CONVERSATIONS[0]}):
        with pytest.raises(ValueError, match="`conversations` is a single conversation: put it into a list"):
            model.predict(one, tokenizer)
    with pytest.raises(ValueError, match="`responses` is a single response: put it into a list"):
        model.rank("w1", "w2", tokenizer)
    with pytest.raises(ValueError, match="`batch_size` is -1, but must be at least 1"):
        model.predict(CONVERSATIONS, tokenizer, batch_size=-1)
    assert model.predict([], tokenizer) == []


def test_another_tokenizer_is_refused():
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    tokenizer.add_tokens(["w1000000"])
    with pytest.raises(ValueError, match=r"has the token id \d+, but the reward model has \d+ tokens"):
        model.predict(["w1 w1000000"], tokenizer)


@pytest.mark.parametrize("environment", [4, 5])
def test_they_travel(environment, tmp_path):
    model = tiny_reward_model()
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tiny_tokenizer(), tmp_path / "model")
    expected = model.predict(CONVERSATIONS, tiny_tokenizer())
    (found,) = score_elsewhere(environment, [tmp_path / "model"], PREDICT, CONVERSATIONS).values()
    rewards, ranked = found
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert {index for index, _, _ in ranked} == {0, 1} and ranked[0][1] >= ranked[1][1]


def test_rank_sorts_by_reward_and_keeps_the_place_of_each_response():
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    responses = ["w3 w4", "w9 w8 w7", "w30", ""]
    ranked = model.rank("w1 w2", responses, tokenizer, batch_size=2)
    assert [response.response for response in ranked] == [responses[response.index] for response in ranked]
    assert [response.reward for response in ranked] == sorted((r.reward for r in ranked), reverse=True)
    asked = [{"role": "user", "content": "w1 w2"}]
    again = model.rank(asked, responses, tokenizer)
    assert [response.index for response in again] == [response.index for response in ranked]


def test_long_texts_lose_their_start_as_in_scoring():
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    tokenizer.model_max_length = 12
    rows = [{"messages": [{"role": "user", "content": "w1 " * 20}, {"role": "assistant", "content": "w5 " * n}]}
            for n in (3, 9, 30)]  # fmt: skip
    expected = [row["reward"] for row in score_rows(model, tokenizer, rows)]
    assert model.predict(rows, tokenizer) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bad", [[], [{"role": "user", "content": "w1"}], "", {"text": "w1"}, 5, ["w1"]])
def test_a_text_without_a_response_is_refused(bad):
    with pytest.raises(ValueError, match=r"must end with|holds no response|must be a string, a list of messages"):
        tiny_reward_model().predict([bad], tiny_tokenizer())


def test_the_model_says_what_it_is():
    said = repr(tiny_reward_model())
    assert "tiny cut after layer 2, response_mean pooling, 6 latents, linear head" in said
    assert torch.is_grad_enabled()
