"""Texts of every kind of row, as an SAE is trained on and checked with them."""

import json
import re

import pytest
from tiny import tiny_tokenizer

from sparserm_hf.cli import align as align_cli
from sparserm_hf.cli.main import main
from sparserm_hf.conversations.chat_templates import encode
from sparserm_hf.conversations.sae_texts import iterate_texts, load_texts
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae import check as sae_check
from sparserm_hf.sae.training import recipe

QUESTION, ANSWER = {"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}


def words(*numbers: int) -> list[int]:
    return [8 + number for number in numbers]


def test_each_kind_of_row_gives_its_texts():
    tokenizer = tiny_tokenizer()
    chat = encode(tokenizer, [QUESTION, ANSWER])
    for row, expected in (
        ({"text": "w1 w2 w3"}, [words(1, 2, 3)]),
        ({"text": " \n"}, []),  # as Wikitext has between its paragraphs
        ({"messages": [QUESTION, ANSWER]}, [chat]),
        ({"messages": [QUESTION]}, [encode(tokenizer, [QUESTION])]),  # an SAE reads questions too
        ({"prompt": "w1 w2", "completion": "w3"}, [chat]),  # a question and its answer
        ({"prompt": [QUESTION], "completion": [ANSWER]}, [chat]),
        ({"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [ANSWER]}, [chat, chat]),
        ({"prompt": "w1 w2", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER]}, [chat, chat]),
        ({"chosen": "w1 w2", "rejected": "w1 w3"}, [words(1, 2), words(1, 3)]),
    ):
        assert list(iterate_texts([row], tokenizer, 50)) == expected
    with pytest.raises(SparseRMError, match="Row 2 has the columns title; it needs either `text`"):
        list(iterate_texts([{"text": "w1"}, {"title": "w1"}], tokenizer, 50))
    with pytest.raises(SparseRMError, match="Row 1 is 'w1', of the type str, but must be an object"):
        list(iterate_texts(["w1"], tokenizer, 50))


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
    with pytest.raises(SparseRMError, match=re.escape("x.jsonl, row 6 has the columns wrong")):
        load_texts(str(tmp_path / "x.jsonl"), tokenizer, max_tokens=99, max_length=50)
    (tmp_path / "x.txt").write_text("w1 w2\n\nw3 w4\n")
    assert load_texts(str(tmp_path / "x.txt"), tokenizer, 99, 50) == [words(1, 2), words(3, 4)]
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("empty.txt", "There is no text in"), ("none.txt", "There is no file")):
        with pytest.raises(SparseRMError, match=message):
            load_texts(str(tmp_path / name), tokenizer, 99, 50)


@pytest.mark.parametrize("suffix", ["jsonl", "txt", "csv"])
def test_a_split_is_cut_out_of_a_local_file(suffix, tmp_path):
    """`--dataset_split train[:3]` was once ignored for files: an SAE was checked on what it was trained on."""
    texts = [f"w{i} w{i}" for i in range(6)]
    path = tmp_path / f"x.{suffix}"
    lines = [json.dumps({"text": text}) for text in texts] if suffix == "jsonl" else texts
    path.write_text("\n".join(["text", *lines] if suffix == "csv" else lines) + "\n")

    def read(split):
        return load_texts(str(path), tiny_tokenizer(), 99, 50, split)

    assert read("train[:3]") == [words(i, i) for i in range(3)]
    assert read("train[4:]") == [words(i, i) for i in (4, 5)]
    assert read("train[2:4]") == [words(i, i) for i in (2, 3)]
    assert len(read("train")) == 6
    for split in ("train[:50%]", "train[-2:]", "train[3]", "train[:²]"):
        with pytest.raises(SparseRMError, match=r"must look like train, train\[:1000\]"):
            read(split)


def test_each_command_passes_its_split_on(world, tmp_path, monkeypatch, capsys):
    """The commands took `--dataset_split`, and read the whole of a local file."""
    asked = []

    def noted(source, tokenizer, max_tokens, max_length, split, config):
        asked.append(split)
        raise SparseRMError("read")

    monkeypatch.setattr(recipe, "load_texts", noted)
    monkeypatch.setattr(sae_check, "load_texts", noted)
    given = ["--model", str(world / "base"), "--dataset", str(world / "train.jsonl"), "--dataset_split", "train[:3]"]
    assert main(["sae", "train", *given, "--output_dir", str(tmp_path / "sae"), "--layer", "2"]) == 2
    assert main(["sae", "check", *given, "--sae", str(world / "sae")]) == 2
    monkeypatch.setattr(align_cli, "iterate_rows", lambda source, split: noted(source, None, 0, 0, split, None))
    arguments = [str(world / "base"), "--reward_model", str(world / "base"), "--questions", str(world / "train.jsonl")]
    main(["align", "--policy", *arguments, "--questions_split", "train[:3]", "--output_dir", str(tmp_path / "x")])
    assert asked == ["train[:3]"] * 3, capsys.readouterr().err
