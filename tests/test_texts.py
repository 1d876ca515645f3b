"""Texts of every kind of row, as an SAE is trained on and checked with them."""

import json

import pytest
from tiny import tiny_tokenizer

from sparserm_hf.errors import SparseRMError
from sparserm_hf.preferences.templates import encode
from sparserm_hf.preferences.texts import iterate_texts, load_texts

QUESTION, ANSWER = {"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}


def words(*numbers: int) -> list[int]:
    return [8 + number for number in numbers]


def test_each_kind_of_row_gives_its_texts():
    tokenizer = tiny_tokenizer()
    chat = encode(tokenizer, [QUESTION, ANSWER])
    for row, expected in (
        ({"text": "w1 w2 w3"}, [words(1, 2, 3)]),
        ({"messages": [QUESTION, ANSWER]}, [chat]),
        ({"prompt": "w1 w2", "completion": "w3"}, [chat]),  # a question and its answer
        ({"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [ANSWER]}, [chat, chat]),
        ({"chosen": "w1 w2", "rejected": "w1 w3"}, [words(1, 2), words(1, 3)]),
    ):
        assert list(iterate_texts([row], tokenizer, 50)) == expected
    with pytest.raises(SparseRMError, match="Row 2 has the columns title; it needs `text`"):
        list(iterate_texts([{"text": "w1"}, {"title": "w1"}], tokenizer, 50))


def test_a_long_text_is_split_and_a_long_conversation_cut():
    tokenizer = tiny_tokenizer()
    text = {"text": "<bos> w1 w2 w3 w4 w5 w6 w7"}
    bos = tokenizer.bos_token_id
    assert list(iterate_texts([text], tokenizer, 4)) == [[bos, *words(1, 2, 3)], [bos, *words(4, 5, 6)]]
    assert list(iterate_texts([{"messages": [QUESTION, ANSWER]}], tokenizer, 4)) == [
        encode(tokenizer, [QUESTION, ANSWER])[:4]
    ]


def test_reading_stops_when_there_are_enough_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = [{"text": f"w{i} w{i + 1} w{i + 2}"} for i in range(5)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"wrong": 1}])))
    assert len(load_texts(str(tmp_path / "x.jsonl"), tokenizer, max_tokens=7, max_length=50)) == 3
    (tmp_path / "x.txt").write_text("w1 w2\n\nw3 w4\n")
    assert load_texts(str(tmp_path / "x.txt"), tokenizer, 99, 50) == [words(1, 2), words(3, 4)]
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("empty.txt", "There is no text in"), ("none.txt", "There is no file")):
        with pytest.raises(SparseRMError, match=message):
            load_texts(str(tmp_path / name), tokenizer, 99, 50)
