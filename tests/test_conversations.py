"""Conversations and preference pairs: every format, every refusal, nothing lost that matters."""

import gzip
import io
import json
import sys
from datetime import datetime

import pytest
from datasets import Dataset, DatasetDict
from tiny import CHAT_TEMPLATE, tiny_encoder, tiny_reward_model, tiny_tokenizer
from trl.data_utils import apply_chat_template

from sparserm_hf.conversations import tokenizer_preparation
from sparserm_hf.conversations.chat_templates import encode
from sparserm_hf.conversations.data_files import iterate_json, iterate_rows, load_preferences
from sparserm_hf.conversations.encoding import TokenizedText
from sparserm_hf.conversations.preferences import parse_preference
from sparserm_hf.conversations.response_marks import find_marks
from sparserm_hf.conversations.row_texts import texts_of_row
from sparserm_hf.conversations.tokenized_preferences import tokenize_preferences
from sparserm_hf.conversations.tokenizer_preparation import PLAIN_CHAT_TEMPLATE, prepare_tokenizer
from sparserm_hf.conversations.turns import find_turns
from sparserm_hf.evaluation.saved_models import evaluate
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.scored_rows import ROW_ERROR, score_rows
from sparserm_hf.training.config import SparseRMTrainingConfig
from sparserm_hf.training.trainer import SparseRMTrainer


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
    pairs = tokenize_preferences([FORMATS[name]], tiny_encoder(tokenizer))
    chosen, rejected = (tokenizer.decode(pairs.texts[i[0]].ids) for i in (pairs.chosen, pairs.rejected))
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
    pairs = tokenize_preferences(Dataset.from_list(rows), tiny_encoder(max_length=16))
    assert len(pairs) == 3 and len(pairs.texts) == 5, "w1 w3 stands in two pairs and is one text"
    assert pairs.margins == [0.5, 0.0, 2.0]
    assert pairs.groups == [0, 0, 1]
    assert pairs.truncated == 1 and pairs.lengths.max() == 16
    assert pairs.summary() == (
        "3 pairs, 5 distinct texts; 1 left out (chosen and rejected are identical); 1 left out (empty response); "
        "1 left out (response longer than max_length = 16); 1 lost the start of their prompt"
    )


def test_truncation_takes_the_start_of_the_prompt_and_keeps_bos():
    text = TokenizedText((1, 10, 3, 11, 20, 21), 2, 4, 6)  # begin of text, a prompt, a header at 2, a response
    assert text.keep_end(6, bos=1) == text
    assert text.keep_end(5, bos=1) == ((1, 3, 11, 20, 21), 1, 3, 5)
    assert text.keep_end(5, bos=None) == ((10, 3, 11, 20, 21), 1, 3, 5)
    assert text.keep_end(3, bos=1) == ((1, 20, 21), 1, 1, 3)
    assert text.response == text.keep_end(3, bos=1).response == (20, 21)


def test_an_over_long_conversation_keeps_its_assistant_header():
    """The header tells the response from the prompt: without it `response_mean` would average the whole text."""
    tokenizer = tiny_tokenizer()
    row = {"prompt": [user("w1 " * 50)], "chosen": [assistant("w3 w3")], "rejected": [assistant("w4")]}
    pairs = tokenize_preferences([row], tiny_encoder(tokenizer, 12))
    header = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert all(text.ids[text.turn] == header and len(text.ids) == 12 for text in pairs.texts)
    assert [tokenizer.decode(text.response) for text in pairs.texts] == ["w3 w3", "w4"]


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


def test_a_template_that_refuses_a_row_says_so():
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    rows = [FORMATS["conversational, explicit"], {"messages": [{"role": "system", "content": "w1"}, assistant("w2")]}]
    scored = list(score_rows(tiny_reward_model(), tiny_tokenizer(refusing + CHAT_TEMPLATE), rows))
    assert "chosen_reward" in scored[0]
    assert scored[1][ROW_ERROR] == "Row 2 is refused by the chat template: no system role here."


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
    if suffix == "csv":  # in which every cell is text
        rows = [{name: str(value) for name, value in row.items()} for row in rows]
    assert load_preferences(str(path)).to_list() == rows
    assert [int(row["margin"]) for row in load_preferences(str(path), "train[1:3]")] == [1, 2]
    assert [int(row["margin"]) for row in iterate_rows(str(path), "train[:3]")] == [0, 1, 2]
    assert len(load_preferences(str(path), "train[:9]")) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n{"chosen": "a"\n', "a.jsonl: line 2 is broken JSON"),
        ("a.json", '[{"chosen": "a"},\n {"chosen": }]', "a.json: line 2 is broken JSON"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}\n\n[1]\n', "line 3 is of the type list, not a JSON object"),
        ("a.json", "[1, 2]", "entry 1 is of the type int, not a JSON object"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl.gz", "not gzip at all", "cannot be read as text"),
        ("a.txt", "hello", "is not a .json, .jsonl"),
        ("a.parquet", "hello", "cannot be read as parquet"),
        ("a.csv", "chosen,rejected\na,b\nYes, of course,b\n", "a.csv, row 2 has 3 cells, but there are 2 columns"),
        ("a.csv", 'chosen,rejected\n"a,b\n', "cannot be read as csv"),
        ("a.csv", "chosen,chosen\na,b\n", "two columns with the same name"),
        ("a.jsonl", '{"chosen": "a"}\n{"chosen": ["a"]}\n', "the rows do not have the same form"),
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
    pairs = tokenize_preferences(load_preferences(str(tmp_path / "a.jsonl")), tiny_encoder())
    assert pairs.margins == [0.0, 2.0] and pairs.lengths.tolist() == [1, 1, 2, 2]


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
        ({"chosen": "a"}, "The column `rejected` is missing; the columns are chosen"),
        ({"chosen": "a", "rejected": None}, "Row 1 has no `rejected` response"),
        (
            {"chosen": "a", "rejected": [assistant("b")]},
            "Row 1: `chosen` is a string, `rejected` is messages; all must",
        ),
        ({"chosen": "w1", "rejected": "w2", "margin": "high"}, "Row 1, `margin` is 'high', but must be a number"),
        ({"chosen": "w1", "rejected": "w2", "margin": float("nan")}, "Row 1, `margin` is nan, but must be"),
        ({"chosen": "w1", "rejected": "w2", "margin": 10**5000}, "Row 1, `margin` is a value of the type int, but"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "Row 1, `prompt` is 3, of the type int, but must be a string"),
        ({"chosen": [{"role": "user"}], "rejected": [assistant("b")]}, "Row 1, `chosen`: message 1 has no `content`"),
        ({"chosen": "w1", "rejected": "w1"}, r"No usable pair in 1 rows \(1 chosen and rejected are identical\)"),
        ("a text", "Row 1 is 'a text', of the type str, but must be an object with columns"),
    ],
)
def test_a_bad_row_gets_one_sentence(row, message):
    with pytest.raises(SparseRMError, match=message):
        tokenize_preferences([row], tiny_encoder())


def test_standard_input_is_told_by_line():
    assert list(iterate_json(io.StringIO('{"a": 1}\n\n{"a": 2}\n'))) == [{"a": 1}, {"a": 2}]
    with pytest.raises(SparseRMError, match="standard input: line 1 is broken"):
        list(iterate_json(io.StringIO("{\n")))


def split(chosen, rejected, **more):
    pair = parse_preference({"chosen": chosen, "rejected": rejected, **more}, "Row 1")
    return pair.prompt, pair.chosen, pair.rejected


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (
            "The capital of Italy is Rome",
            "The capital of Italy is Rome and Milan.",
            ("The capital of Italy is ", "Rome", "Rome and Milan."),
        ),
        ("Is it so? Yes", "Is it so? Yesterday", ("Is it so? ", "Yes", "Yesterday")),
        ("w1 ", "w1 w2", ("", "w1 ", "w1 w2")),
        ("ab", "abc", ("", "ab", "abc")),
        ("same", "same", ("", "same", "same")),
        (
            "\n\nHuman: Hi?\n\nAssistant: I am well",
            "\n\nHuman: Hi?\n\nAssistant: I am ill",
            ("\n\nHuman: Hi?\n\nAssistant:", " I am well", " I am ill"),
        ),
        (
            [user("w1"), assistant("w2")],
            [user("w1"), assistant("w3")],
            ([user("w1")], [assistant("w2")], [assistant("w3")]),
        ),
        (
            [user("w1"), assistant("w2")],
            [user("w1"), assistant("w2"), user("w3"), assistant("w4")],
            ([user("w1")], [assistant("w2")], [assistant("w2"), user("w3"), assistant("w4")]),
        ),
    ],
)  # fmt: skip
def test_an_implicit_prompt_ends_at_a_turn_or_a_word_and_empties_no_response(chosen, rejected, expected):
    """It was once all the characters that both begin with: 'Rome' against 'Rome and Milan.' was left out as empty."""
    assert split(chosen, rejected) == expected
    assert split(rejected, chosen) == (expected[0], expected[2], expected[1])


def test_a_pair_of_which_one_response_begins_with_the_other_is_kept():
    rows = [{"chosen": "w1 w2 w3", "rejected": "w1 w2 w3 w4"}]
    rows += [{"chosen": [user("w1"), assistant("w3")], "rejected": [user("w1"), assistant("w3 w4")]}]
    pairs = tokenize_preferences(rows, tiny_encoder())
    assert len(pairs) == 2 and not pairs.left_out


def test_a_rendered_response_without_content_is_empty():
    rendered = "<|user|> w1 <|end|> <|assistant|> {} <|end|>"
    rows = [{"chosen": rendered.format("w2"), "rejected": rendered.format(answer)} for answer in ("w3", "")]
    assert tokenize_preferences(rows, tiny_encoder()).left_out == {"empty response": 1}


def test_pairs_of_one_question_are_one_group_in_any_form():
    """Each form, and each pair whose responses began alike, once got a group of its own: folds shared prompts."""
    rendered = "<|user|> w1 w2 <|end|> <|assistant|> {} <|end|>"
    asked = user("w1 w2")
    one_question = [
        {"prompt": [asked], "chosen": [assistant("w3 w4")], "rejected": [assistant("w3 w5")]},
        {"chosen": [asked, assistant("w3 w6")], "rejected": [asked, assistant("w7")]},
        {"prompt": [asked], "chosen": [asked, assistant("w8")], "rejected": [asked, assistant("w9")]},
        {"prompt": "w1 w2", "chosen": [asked, assistant("w10")], "rejected": [asked, assistant("w11")]},
        {"prompt": "w1 w2", "chosen": [assistant("w12")], "rejected": [assistant("w13")]},
        {"chosen": rendered.format("w14 w15"), "rejected": rendered.format("w14")},
        {
            "prompt": rendered.partition("{")[0],
            "chosen": "w16 <|end|>",
            "rejected": "w17 <|end|>",
        },
        # Dialogues that part before their last turn.
        {
            "chosen": [asked, assistant("w18"), user("w1"), assistant("w2")],
            "rejected": [asked, assistant("w19"), user("w3"), assistant("w4")],
        },
    ]
    other = {"prompt": [user("w2 w1")], "chosen": [assistant("w3")], "rejected": [assistant("w4")]}
    assert tokenize_preferences([*one_question, other], tiny_encoder()).groups == [0] * len(one_question) + [1]


def lettered():
    """A tokenizer that knows the names of the dialogues, which the tiny one takes for unknown words."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Human:", "Assistant:"])
    return tokenizer


def test_pairs_of_strings_are_grouped_by_prompt_and_by_text():
    """Two pairs on the capital of Italy got two groups, since a longer part of two answers was the same."""
    question = "The capital of Italy is"
    answers = [("Rome", "Rimini"), ("Rome and Milan", "Rome"), ("Rome and Milan", "Rome and Turin")]
    implicit = [{"chosen": f"{question} {a}", "rejected": f"{question} {b}"} for a, b in answers]
    explicit = {"prompt": f"{question} ", "chosen": "Paris", "rejected": "Nice"}
    rows = [*implicit, explicit]
    words = {word: f"w{i}" for i, word in enumerate({w for row in rows for v in row.values() for w in v.split()})}
    known = [
        {n: " ".join(words[w] for w in v.split()) + " " * (n == "prompt") for n, v in row.items()} for row in rows
    ]
    assert tokenize_preferences(known, tiny_encoder()).groups == [0, 0, 0, 0]


@pytest.mark.parametrize("prompt", ["", "\n\nHuman: w1 w2"])
def test_dialogues_of_hh_rlhf_are_grouped_by_what_is_before_the_answer(prompt):
    rows = [
        {"chosen": f"{prompt}\n\nAssistant: {a}", "rejected": f"{prompt}\n\nAssistant: {b}"}
        for a, b in (("w3 w4", "w3 w5"), ("w6", "w7"))
    ]
    assert tokenize_preferences(rows, tiny_encoder(lettered())).groups == [0, 0]


def test_pairs_without_a_prompt_are_groups_of_their_own():
    """All of them were once one group, which nothing can be held out of."""
    rows = [{"chosen": f"w{i}", "rejected": f"w{i + 1}"} for i in (1, 5, 9, 2)]
    assert tokenize_preferences(rows, tiny_encoder()).groups == [0, 1, 2, 0], "the last has a text of the first"


def test_a_prompt_that_is_given_twice_is_read_once():
    """With a `prompt` column and whole conversations in `chosen`, the question was once asked twice."""
    asked, good, bad = [user("w1")], [assistant("w2")], [assistant("w3")]
    assert split(asked + good, asked + bad, prompt=asked) == (asked, good, bad)
    assert split("w1 w2", "w1 w3", prompt="w1 ") == ("w1 ", "w2", "w3")
    # UltraFeedback's form: the prompt is a string, `chosen` the whole conversation.
    assert split(asked + good, asked + bad, prompt="w1") == (asked, good, bad)
    assert split(good, bad, prompt="w1") == (asked, good, bad)
    system = [{"role": "system", "content": "w9"}, *asked]
    assert split(system + good, system + bad, prompt="w1") == (system, good, bad)


TOOL_TEMPLATE = (
    "{% if tools %}<|system|> {% for tool in tools %}{{ tool | tojson }} {% endfor %}<|end|> {% endif %}"
    "{% if polite %}<|system|> w9 <|end|> {% endif %}" + CHAT_TEMPLATE
)
TOOLS = [{"type": "function", "function": {"name": "w5", "description": "w6", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_tools_and_template_arguments_are_rendered_as_trl_renders_them(tools):
    """They were once ignored: a response that calls a function was scored without the functions there are."""
    tokenizer = tiny_tokenizer(TOOL_TEMPLATE)
    row = FORMATS["conversational, explicit"] | {"chat_template_kwargs": {"polite": True}}
    expected = apply_chat_template(row, tokenizer, tools=TOOLS)
    texts = tokenize_preferences([row | {"tools": tools}], tiny_encoder(tokenizer)).texts
    for text, side in zip(texts, ("chosen", "rejected"), strict=True):
        whole = expected["prompt"] + expected[side]
        assert "w9" in whole and "w6" in whole
        assert list(text.ids) == tokenizer(whole, add_special_tokens=False)["input_ids"]
    without = tokenize_preferences([row], tiny_encoder(tokenizer)).texts[0]
    assert len(without.ids) < len(texts[0].ids)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": 3}, "Row 1, `tools` is of the type int, but must be a list"),
        ({"tools": "{}"}, "Row 1, `tools` is of the type dict, but must be a list"),
        ({"tools": "look_up"}, "Row 1, `tools` is the string 'look_up', but must be a list of functions in JSON"),
        ({"tools": "[" * 9999}, r"Row 1, `tools` is the string '\[.*', but must be a list of functions in JSON"),
        ({"chat_template_kwargs": [1]}, "Row 1, `chat_template_kwargs` is of the type list, but must be an object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "Row 1, `chat_template_kwargs` has `tokenize`, which is no"),
    ],
)
def test_tools_of_another_kind_get_one_sentence(more, message):
    with pytest.raises(SparseRMError, match=message):
        texts_of_row({"messages": [user("w1"), assistant("w2")], **more}, "Row 1")


def test_the_cells_of_a_csv_file_are_text_as_written(tmp_path):
    """pandas made None of the answers `NA` and `None`, and numbers of `4` and `007`."""
    cells = ["NA", "None", "True", "4", "007", "null", "", " w1 "]
    path = tmp_path / "pairs.csv"
    lines = ["prompt,chosen,rejected", *(f"w1,{cell},w2" for cell in cells)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    assert load_preferences(str(path))["chosen"][:] == cells
    assert [row["chosen"] for row in iterate_rows(str(path))] == cells
    assert set(next(iter(iterate_rows(str(path))))) == {"prompt", "chosen", "rejected"}, "no byte order mark"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, monkeypatch):
    text = '\ufeff{"text": "w1"}\n{"text": "w2"}\n'
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text('\ufeff[{"text": "w1"}, {"text": "w2"}]', encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufeffw1\nw2\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    for source in ("-", *(str(tmp_path / f"a.{suffix}") for suffix in ("jsonl", "jsonl.gz", "json", "txt"))):
        assert list(iterate_rows(source)) == [{"text": "w1"}, {"text": "w2"}], source


def test_the_splits_of_a_dataset_are_named(world, reward_model, tmp_path):
    rows = Dataset.from_list([{"chosen": "w1", "rejected": "w2"}])
    splits = DatasetDict(train=rows, test=rows)
    config = SparseRMTrainingConfig(str(tmp_path / "out"), k=8, check_sae=False)
    for read in (
        lambda: tokenize_preferences(splits, tiny_encoder()),
        lambda: SparseRMTrainer(str(world / "base"), str(world / "sae"), config, splits),
        lambda: SparseRMTrainer(str(world / "base"), str(world / "sae"), config, rows, splits),
        lambda: evaluate(reward_model, splits),
    ):
        with pytest.raises(SparseRMError, match=r"DatasetDict with the splits train, test .*dataset\['train'\]"):
            read()


def test_rows_of_a_slice_are_named_by_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"chosen": "w1", "rejected": "w2"}\n' * 2 + '{"chosen": "w1", "rejected": "w2", "margin": "x"}\n')
    for split_of, name in (
        ("train", "a.jsonl, row 3, `margin`"),
        ("train[2:]", r"a.jsonl, train\[2:\], row 1, `margin`"),
    ):
        with pytest.raises(SparseRMError, match=name):
            tokenize_preferences(load_preferences(str(path), split_of), tiny_encoder())


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


ANSWER = assistant("w2")
BAD_MESSAGES = {
    "a null content": ([{"role": "user", "content": None}, ANSWER], "message 1 has no `content`"),
    "a number": ([{"role": "user", "content": 5}, ANSWER], "message 1 has a `content` of the type int"),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER],
        "message 1 has a `content` with a part of the type 'image_url'",
    ),
    "no messages": ([], "`messages` is an empty list"),
    "a surrogate in a content": (
        [user("w1 \ud83d"), ANSWER],
        r"message 1, `content` holds half of a surrogate pair \('\\ud83d'\) at character 4",
    ),
    "a surrogate in a role": ([{"role": "\ud83d", "content": "w1"}, ANSWER], "message 1, `role` holds half of"),
    "no role": ([{"content": "w1"}, ANSWER], "message 1 has no `role`"),
    "the user last": ([ANSWER, user("w1")], "the last message has the role 'user', but only a response can be scored"),
    "a tool last": ([user("w1"), {"role": "tool", "content": "w2"}], "the last message has the role 'tool'"),
    "nested": (
        [user("w1"), ANSWER | {"tool_calls": nested(200)}],
        "message 2, `tool_calls` holds lists or objects that are nested more than 100 deep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_messages_get_one_sentence_with_row_and_field(name):
    messages, message = BAD_MESSAGES[name]
    with pytest.raises(SparseRMError, match=f"^Row 2,? ?`messages`.*{message}|^Row 2, {message}"):
        texts_of_row({"messages": messages}, "Row 2")
    good, bad = score_rows(tiny_reward_model(), tiny_tokenizer(), [{"text": "w1"}, {"messages": messages}])
    assert "reward" in good and bad[ROW_ERROR].startswith("Row 2")


def test_text_parts_are_joined_and_calls_need_no_content():
    parts = [{"type": "text", "text": "w2 "}, {"type": "text", "text": "w3", "image": None}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w1", "arguments": {}}}]}
    tool = {"role": "tool", "content": "w4"}
    encoder = tiny_encoder()
    rows = [[user("w1"), assistant(parts)], [user("w1"), call, tool, assistant("w2 w3")]]
    texts = [encoder(texts_of_row({"messages": row}, "Row 1")["reward"]) for row in rows]
    assert [encoder.tokenizer.decode(text.response) for text in texts] == ["w2 w3", "w2 w3"]


def test_rendered_text_without_a_last_answer(caplog):
    """A reward of the question instead of the answer was once given without a word.

    Where an answer stands before, a policy may have written the last turn: that must not end a training run.
    """
    encoder = tiny_encoder()
    with pytest.raises(SparseRMError, match=r"^Row 1 is a prompt without a response"):
        encoder("<|user|> w1 <|end|>", "Row 1")
    text = encoder("<|user|> w1 <|end|> <|assistant|> w2 <|end|> <|user|> w3 <|end|>", "Row 2")
    assert text.response == () and "Row 2 ends with a turn of another role than the assistant" in caplog.text


def test_a_prompt_is_taken_off_each_side_that_repeats_it():
    """Off both or none it was taken once: a question stood twice in one response."""
    whole, answer = [user("w1"), assistant("w2")], [assistant("w3")]
    for prompt in ([user("w1")], "w1"):
        pair = parse_preference({"prompt": prompt, "chosen": whole, "rejected": answer}, "Row 1")
        assert (pair.prompt, pair.chosen, pair.rejected) == ([user("w1")], [assistant("w2")], answer)
    for completion in (whole, whole[1:]):
        texts = texts_of_row({"prompt": [user("w1")], "completion": completion}, "Row 1")
        assert texts["reward"].messages == whole


def test_a_slice_beyond_the_file_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("chosen,rejected\nw1,w2\n")
    with pytest.raises(SparseRMError, match=r"has 1 rows, so the split 'train\[5:\]' is empty"):
        load_preferences(str(path), "train[5:]")


@pytest.mark.parametrize("change", ["upper", "trim", "trim | upper", "replace('w2', 'w5 w6')"])
def test_a_template_may_change_contents(change):
    """`| trim` and `| upper` once left the response unfound, and so all of the text was pooled."""
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE.replace("m['content'] }}", f"m['content'] | {change} }}}}"))
    encoder = tiny_encoder(tokenizer)
    text = encoder([user("w1"), assistant(" w2 w3 ")])
    assert text.ids[text.turn] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert (text.start, text.stop) == (text.turn + 1, len(text.ids) - 1)
    plain = {"trim": "w2 w3", "replace('w2', 'w5 w6')": "w5 w6 w3"}
    assert tokenizer.decode(text.response) == plain.get(change, tokenizer.decode(text.response))


def test_the_date_of_a_template_is_that_of_training(monkeypatch):
    """Llama 3's template prints today: the same text had another reward the next day."""
    dated = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
    tokenizer = prepare_tokenizer(tiny_tokenizer(dated))
    today = datetime.now().strftime("%d %b %Y")
    assert tokenizer.apply_chat_template([user("w1")], tokenize=False).startswith(today)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2055, 5, 5)

    monkeypatch.setattr(tokenizer_preparation, "datetime", Later)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert tokenizer.apply_chat_template([user("w1")], tokenize=False).startswith(today)
    again = tiny_tokenizer(dated)
    assert again.apply_chat_template([user("w1")], tokenize=False).startswith("05 May 2055"), "it is the date"


def test_a_slow_tokenizer_gets_one_sentence():
    class Slow:
        is_fast = False

    with pytest.raises(SparseRMError, match=r"The tokenizer is a Slow, .* use the fast tokenizer"):
        prepare_tokenizer(Slow())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "w1", "id": ' + "9" * 5000 + "}", "line 2 has a number with thousands of digits"),
        (
            '{"text": "w1", "id": ' + "[" * 5000 + "]" * 5000 + "}",
            "line 2 holds lists or objects that are nested more",
        ),
        ('{"text": "w1", "id": ' + "[" * 101 + "]" * 101 + "}", "line 2 holds lists or objects that are nested more"),
        ("5", "line 2 is of the type int, not a JSON object"),
        ("null", "line 2 is of the type NoneType, not a JSON object"),
    ],
)
def test_json_that_cannot_be_a_row_gets_one_sentence(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "w1"}\n' + line + "\n")
    for read in (iterate_rows, load_preferences):
        with pytest.raises(SparseRMError, match=message):
            list(read(str(tmp_path / "a.jsonl")))


def test_odd_values_in_other_columns_do_no_harm(tmp_path):
    lines = [
        '{"text": "w1", "id": NaN}',
        '{"text": "w1", "id": "\\ud83d"}',
        '{"text": "w1", "id": ' + "[" * 100 + "]" * 100 + "}",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    scored = list(score_rows(tiny_reward_model(), tiny_tokenizer(), iterate_rows(str(tmp_path / "a.jsonl"))))
    assert len({row["reward"] for row in scored}) == 1
    (tmp_path / "b.jsonl").write_text(
        '{"chosen": "w1", "rejected": "w2"}\n{"chosen": "w1", "rejected": "w2", "id": "\\ud83d"}\n'
    )
    with pytest.raises(SparseRMError, match=r"b\.jsonl, row 2, `id` holds half of a surrogate pair"):
        load_preferences(str(tmp_path / "b.jsonl"))


def test_odd_names_of_columns_stay_on_one_line():
    """A column called "\n\n" once broke the sentence about it into three lines."""
    row = {"\n\n": 1, "x" * 500: 2, "\ud83d": 3, **{f"c{i}": i for i in range(99)}}
    with pytest.raises(SparseRMError) as caught:
        texts_of_row(row, "Row 1")
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and len(sentence) < 400 and sentence.encode()
    assert "'\\n\\n'" in sentence and "c4 and 94 more" in sentence


@pytest.mark.parametrize("system", [None, "w7 w8"])
def test_turns_are_told_apart_by_their_roles(system):
    tokenizer = tiny_tokenizer()
    messages = [user("w1 w2"), assistant("w3"), user("w4")]
    messages = messages if system is None else [{"role": "system", "content": system}, *messages]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    turns = [(turn.role, turn.content) for turn in find_turns(ids, tokenizer, find_marks(tokenizer))]
    assert turns[-3:] == [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4")]
    assert len(turns) == 3 + (system is not None) and (system is None or "w7 w8" in turns[0][1])
    assert find_turns([], tokenizer, None) == []
