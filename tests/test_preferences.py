"""Preference data: every format, every refusal, nothing lost that matters."""

import gzip
import io
import json

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer

from sparserm_hf.errors import SparseRMError
from sparserm_hf.preferences.files import iterate_json, load_preferences
from sparserm_hf.preferences.pairs import split_prompt, tokenize_preferences
from sparserm_hf.preferences.templates import (
    PLAIN_CHAT_TEMPLATE,
    assistant_header_ids,
    encode,
    keep_end,
    prepare_tokenizer,
    truncate,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


FORMATS = {
    "conversational, explicit": {
        "prompt": [user("w1 w2")],
        "chosen": [assistant("w3")],
        "rejected": [assistant("w4")],
    },
    "conversational, implicit": {
        "chosen": [user("w1 w2"), assistant("w3")],
        "rejected": [user("w1 w2"), assistant("w4")],
    },
    "standard, explicit": {"prompt": "w1 w2 ", "chosen": "w3", "rejected": "w4"},
    "standard, implicit": {"chosen": "w1 w2 w3", "rejected": "w1 w2 w4"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_trl(name):
    tokenizer = tiny_tokenizer()
    pairs = tokenize_preferences([FORMATS[name]], tokenizer, 64)
    chosen, rejected = (tokenizer.decode(pairs.texts[i[0]]) for i in (pairs.chosen, pairs.rejected))
    if name.startswith("conversational"):
        assert chosen == "<|user|> w1 w2 <|end|> <|assistant|> w3 <|end|>"
        assert rejected == "<|user|> w1 w2 <|end|> <|assistant|> w4 <|end|>"
    else:
        assert (chosen, rejected) == ("w1 w2 w3", "w1 w2 w4")
    assert pairs.margins == [0.0]


def test_margins_duplicates_and_what_is_left_out_are_counted():
    rows = [
        {"prompt": "w1 ", "chosen": "w2", "rejected": "w3", "margin": 0.5},
        {"prompt": "w1 ", "chosen": "w3", "rejected": "w4", "margin": None},
        {"prompt": "w1 ", "chosen": "w2", "rejected": "w2", "margin": 1.0},
        {"prompt": "w5 ", "chosen": "  ", "rejected": "w2", "margin": 1.0},
        {"prompt": "w5 ", "chosen": "w2", "rejected": " ".join(["w3"] * 40), "margin": 1.0},
        {"prompt": "w6 " * 30, "chosen": "w2", "rejected": "w3", "margin": 2},
    ]
    pairs = tokenize_preferences(Dataset.from_list(rows), tiny_tokenizer(), 16)
    assert len(pairs) == 3 and len(pairs.texts) == 5, "w1 w3 stands in two pairs and is one text"
    assert pairs.margins == [0.5, 0.0, 2.0]
    assert pairs.groups == [0, 0, 1]
    assert pairs.truncated == 1 and max(map(len, pairs.texts)) == 16
    assert pairs.summary() == (
        "3 pairs, 5 distinct texts; 1 left out (chosen and rejected are identical); 1 left out (empty response); "
        "1 left out (response longer than max_length = 16); 1 lost the start of their prompt"
    )


def test_truncation_takes_the_start_of_the_prompt_and_keeps_bos():
    ids = [1, 10, 11, 12, 20, 21]  # begin of text, three of the prompt, two of the response
    assert truncate(ids, 4, 6, bos=1) == ids
    assert truncate(ids, 4, 5, bos=1) == [1, 11, 12, 20, 21]
    assert truncate(ids, 4, 3, bos=1) == [1, 20, 21]
    assert truncate(ids, 4, 2, bos=1) is None
    assert truncate(ids, 4, 2, bos=None) == [20, 21]
    assert truncate(ids, 4, 1, bos=None) is None
    assert keep_end(ids, 2, bos=1) == [1, 21]


def test_an_over_long_conversation_keeps_its_assistant_header():
    """The header tells the response from the prompt: without it `response_mean` would average the whole text."""
    tokenizer = tiny_tokenizer()
    row = {"prompt": [user("w1 " * 50)], "chosen": [assistant("w3 w3")], "rejected": [assistant("w4")]}
    pairs = tokenize_preferences([row], tokenizer, 12)
    header = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert all(header in text and len(text) == 12 for text in (pairs.texts[0], pairs.texts[1]))


def test_bos_is_never_doubled():
    """A template that writes the BOS, tokenised with special tokens added, once doubled it."""
    tokenizer = tiny_tokenizer("{{ bos_token }} " + "{% for m in messages %}{{ m['content'] }} {% endfor %}")
    tokenizer.add_bos_token = True
    bos = tokenizer.bos_token_id
    assert encode(tokenizer, [user("w1")]).count(bos) == 1
    assert encode(tokenizer, "<bos> w1").count(bos) == 1


def test_the_plain_template_is_used_where_there_is_none():
    tokenizer = prepare_tokenizer(tiny_tokenizer(chat_template=None, pad_token=None))
    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    assert tokenizer.pad_token == "<eos>" and tokenizer.truncation_side == "left"
    messages = [user(" a question "), assistant("an answer"), user("another")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<bos>User: a question\n\nAssistant: an answer<eos>\n\nUser: another\n\nAssistant:"
    tokenizer = tiny_tokenizer(pad_token=None)
    tokenizer.eos_token = None
    with pytest.raises(SparseRMError, match="neither a pad token nor an end-of-text token"):
        prepare_tokenizer(tokenizer)


def test_the_assistant_header_is_found():
    tokenizer = tiny_tokenizer()
    names = tokenizer.convert_ids_to_tokens(assistant_header_ids(tokenizer))
    assert names == ["<|end|>", "<|assistant|>"]
    bare = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    assert assistant_header_ids(tiny_tokenizer(bare)) == []


def test_a_template_that_refuses_a_role_says_so():
    tokenizer = tiny_tokenizer("{{ raise_exception('no system role here') }}")
    with pytest.raises(SparseRMError, match="The chat template refuses a conversation: no system role here"):
        tokenize_preferences([FORMATS["conversational, explicit"]], tokenizer, 64)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz", "csv", "parquet", "list.json"])
def test_every_kind_of_file(suffix, tmp_path):
    rows = [FORMATS["standard, explicit"] | {"margin": i} for i in range(5)]
    path = tmp_path / f"pairs.{suffix}"
    dataset = Dataset.from_list(rows)
    if suffix == "csv":
        dataset.to_csv(path)
    elif suffix == "parquet":
        dataset.to_parquet(path)
    elif suffix == "list.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert load_preferences(str(path)).to_list() == rows
    assert [row["margin"] for row in load_preferences(str(path), "train[1:3]")] == [1, 2]
    assert len(load_preferences(str(path), "train[:9]")) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen": "a"\n', "a.jsonl: line 2 is broken JSON"),
        ("a.json", '[{"chosen": "a"},\n {"chosen": }]', "a.json: line 2 is broken JSON"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n\n[1]\n', "line 3 is not a JSON object"),
        ("a.json", "[1, 2]", "entry 1 is not a JSON object"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl.gz", "not gzip at all", "cannot be read as text"),
        ("a.txt", "hello", "is not a .json, .jsonl"),
        ("a.parquet", "hello", "cannot be read as parquet"),
        ("a.jsonl", '{"chosen": "a"}\n{"chosen": ["a"]}\n', "not of one form"),
    ],
)
def test_a_broken_file_gets_one_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(SparseRMError, match=message):
        load_preferences(str(tmp_path / name))


def test_columns_that_the_first_row_lacks_are_not_lost(tmp_path):
    """`Dataset.from_list` takes its columns from the first row: later prompts and margins once vanished."""
    rows = [{"chosen": "w1", "rejected": "w2"}, {"prompt": "w3 ", "chosen": "w4", "rejected": "w5", "margin": 2.0}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = tokenize_preferences(load_preferences(str(tmp_path / "a.jsonl")), tiny_tokenizer(), 16)
    assert pairs.margins == [0.0, 2.0] and [len(text) for text in pairs.texts] == [1, 1, 2, 2]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    (tmp_path / "a.json").write_text('{"chosen": "w1\u2028w2", "rejected": "w3"}\n', encoding="utf-8")
    assert load_preferences(str(tmp_path / "a.json"))[0]["chosen"] == "w1\u2028w2"


def test_a_missing_file_dataset_and_split(tmp_path):
    with pytest.raises(SparseRMError, match="There is no file"):
        load_preferences(str(tmp_path / "none.jsonl"))
    with pytest.raises(SparseRMError, match="The dataset 'no/such-dataset', split 'train', cannot be loaded"):
        load_preferences("no/such-dataset")
    (tmp_path / "a.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n')
    with pytest.raises(SparseRMError, match="must look like train"):
        load_preferences(str(tmp_path / "a.jsonl"), "train[:10%]")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "The column 'rejected' is missing; the columns are chosen"),
        ({"chosen": "a", "rejected": None}, "Row 1 has no rejected response"),
        (
            {"chosen": "a", "rejected": [assistant("b")]},
            "another form: chosen is str, rejected is list",
        ),
        ({"chosen": "w1", "rejected": "w2", "margin": "high"}, "Row 1 has the margin 'high', but"),
        ({"chosen": "w1", "rejected": "w2", "margin": float("nan")}, "Row 1 has the margin nan, but"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "another form: prompt is int"),
        ({"chosen": [{"role": "user"}], "rejected": [assistant("b")]}, "another form"),
        ({"chosen": "a", "rejected": "a"}, r"No usable pair in 1 rows \(1 chosen and rejected are identical\)"),
    ],
)
def test_a_bad_row_gets_one_sentence(row, message):
    with pytest.raises(SparseRMError, match=message):
        tokenize_preferences([row], tiny_tokenizer(), 64)


def test_the_implicit_prompt_is_what_both_begin_with():
    prompt, chosen, rejected = split_prompt(FORMATS["conversational, implicit"], 1)
    assert (prompt, chosen, rejected) == ([user("w1 w2")], [assistant("w3")], [assistant("w4")])
    assert split_prompt({"chosen": "ab", "rejected": "abc"}, 1) == ("ab", "", "c")


def test_standard_input_is_told_by_line():
    assert list(iterate_json(io.StringIO('{"a": 1}\n\n{"a": 2}\n'))) == [{"a": 1}, {"a": 2}]
    with pytest.raises(SparseRMError, match="standard input: line 1 is broken"):
        list(iterate_json(io.StringIO("{\n")))
