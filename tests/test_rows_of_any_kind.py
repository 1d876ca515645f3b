"""Whatever a row holds, it gets finite rewards or one sentence: through score, train, explain and the server."""

import json
import math
from functools import cache

import pytest
from chat_templates import TEMPLATES, prepared, reward_model_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_encoder, tiny_reward_model, tiny_tokenizer

from sparserm_hf.conversations.tokenized_preferences import tokenize_preferences
from sparserm_hf.explanations.explained_rows import explain_rows
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.scored_rows import ROW_ERROR, score_rows

# The same examples in every run, and none remembered from another.
EXAMPLES = settings(
    derandomize=True, database=None, deadline=None, max_examples=70, suppress_health_check=list(HealthCheck)
)

SPELLINGS = ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>", "<bos>", "<eos>", "<pad>", "<unk>"]
SPELLINGS += [
    "<|im_start|>assistant\n",
    "<|im_end|>",
    "<think>",
    "</think>",
    "[INST]",
    " [/INST]",
    "</s>",
    "<tool_call>",
]
PIECES = st.one_of(
    st.sampled_from([*SPELLINGS, "w1", "w2 w3", " ", "\n\nAssistant:", "\ud800", "\udc00", "\U000f0000"]),
    st.text(st.characters(exclude_categories=()), max_size=6),  # with halves of surrogate pairs
)
STRINGS = st.lists(PIECES, max_size=6).map("".join)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(), STRINGS)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3), max_leaves=8
)
PARTS = st.lists(
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image_url"]) | SCALARS, "text": SCALARS}),
    max_size=3,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": STRINGS}, optional={"arguments": ANYTHING})},
        optional={"id": SCALARS, "type": st.just("function")},
    ),
    max_size=2,
)
ROLES = st.sampled_from(["user", "assistant", "assistant", "system", "tool"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES | SCALARS, "content": STRINGS | PARTS | ANYTHING},
        optional={"tool_calls": CALLS | ANYTHING, "reasoning_content": STRINGS | SCALARS, "name": SCALARS},
    )
    | ANYTHING,
    max_size=3,
)
# Conversations that the most part of is right, so that the model gets to read many of them.
CONVERSATIONS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": STRINGS}), max_size=2).flatmap(
    lambda before: STRINGS.map(lambda answer: [*before, {"role": "assistant", "content": answer}])
)
TEXTS = STRINGS | CONVERSATIONS | MESSAGES | ANYTHING
BESIDE = {"tools": STRINGS | ANYTHING, "chat_template_kwargs": ANYTHING, "margin": SCALARS, "id": ANYTHING}


def having(*columns):
    return st.fixed_dictionaries(dict.fromkeys(columns, TEXTS), optional=BESIDE)


STRING_PAIRS = st.fixed_dictionaries({"prompt": STRINGS, "chosen": STRINGS, "rejected": STRINGS})
ROWS = st.one_of(
    having("text"),
    having("messages"),
    having("prompt", "completion"),
    having("chosen", "rejected"),
    having("prompt", "chosen", "rejected"),
    STRING_PAIRS,
    st.fixed_dictionaries({"chosen": CONVERSATIONS, "rejected": CONVERSATIONS}),
    st.dictionaries(STRINGS | st.sampled_from(["reward", "reward_error", "chosen"]), ANYTHING, max_size=3),
)
MANY_ROWS = st.lists(ROWS, min_size=1, max_size=6)


# Words alone, and what most models have; the last template refuses conversations in which turns do not alternate.
KINDS = ("words", "Qwen 3", "Mistral")


@cache  # no fixture: hypothesis would print the model with each example that fails
def loaded(kind="words"):
    if kind == "words":
        return tiny_reward_model(), tiny_tokenizer()
    tokenizer = prepared(TEMPLATES[kind])
    return reward_model_for(tokenizer, "response_mean"), tokenizer


def assert_one_sentence(sentence):
    assert isinstance(sentence, str) and sentence.strip()
    assert len(sentence.splitlines()) == 1, sentence
    assert sentence.rstrip().endswith((".", "}.")), sentence
    assert len(sentence) < 600, sentence
    sentence.encode()


def assert_answered(row, given):
    rewards = {name: value for name, value in row.items() if name in ("reward", "chosen_reward", "rejected_reward")}
    if ROW_ERROR in row:
        assert not rewards
        assert_one_sentence(row[ROW_ERROR])
    else:
        assert rewards and all(isinstance(value, float) and math.isfinite(value) for value in rewards.values())


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(rows=MANY_ROWS)
def test_score_rows_yields_each_row_with_rewards_or_a_sentence(kind, rows):
    scored = list(score_rows(*loaded(kind), rows))
    assert len(scored) == len(rows)
    for row, of in zip(scored, rows, strict=True):
        assert_answered(row, of)


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(text=STRINGS | CONVERSATIONS | MESSAGES | st.fixed_dictionaries({"messages": TEXTS}, optional=BESIDE))
def test_predict_gives_the_reward_of_scoring_or_a_sentence(kind, text):
    """Contents in parts once got other rewards, and a missing content was scored."""
    model, tokenizer = loaded(kind)
    row = text if isinstance(text, dict) else {"text": text} if isinstance(text, str) else {"messages": text}
    (scored,) = score_rows(model, tokenizer, [row])
    try:
        rewards = model.predict([text], tokenizer)
    except ValueError as error:
        assert_one_sentence(str(error))
    else:
        assert rewards == pytest.approx([scored["reward"]], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@EXAMPLES
@given(rows=MANY_ROWS)
def test_training_and_explaining_work_or_give_a_sentence(kind, rows):
    model, tokenizer = loaded(kind)
    try:
        tokenize_preferences(rows, tiny_encoder(tokenizer, 100))
    except SparseRMError as error:
        assert_one_sentence(str(error))
    for explained in explain_rows(model, tokenizer, rows, max_length=100):
        if explained.error:
            assert_one_sentence(explained.error)


@EXAMPLES
@given(rows=MANY_ROWS, texts=st.lists(STRINGS, min_size=1, max_size=3))
def test_the_server_answers_200_or_422(client, rows, texts):
    bodies = {
        "/score": {"rows": rows},
        "/explain": {"rows": rows},
        "/get_reward": {"query": texts},
        "/classify": {"messages": rows},
        "/v1/embeddings": {"input": texts},
    }
    for path, body in bodies.items():
        answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 422), (path, answer.text)
        if answer.status_code == 422:
            assert_one_sentence(answer.json()["error"])


@pytest.fixture(scope="module")
def client():
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from sparserm_hf.server.app import create_app

    with TestClient(
        create_app(*loaded(), "model"), base_url="http://localhost", raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from sparserm_hf.runtime.checkpoint_folders import save_tokenizer

    model, tokenizer = loaded()
    folder = tmp_path_factory.mktemp("rows")
    model.save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    return folder


@settings(EXAMPLES, max_examples=25)
@given(rows=st.lists(ROWS, min_size=1, max_size=30))
def test_the_command_writes_every_row(folder, rows):
    from sparserm_hf.cli.main import main

    source, out = folder / "rows.jsonl", folder / "scored.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out.unlink(missing_ok=True)
    code = main(["score", str(folder / "model"), str(source), "--output", str(out)])
    scored = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]
    assert len(scored) == len(rows)
    for row, of in zip(scored, rows, strict=True):
        assert_answered(row, of)
    assert code == (2 if any(ROW_ERROR in row for row in scored) else 0)


def post(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    return answer.status_code, answer.json().get("error", "")


def deep(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"text": "w1", "id": NaN}', "Row 2, `id` holds NaN or infinity"),
        ('{"text": "w1", "id": [{"a": -Infinity}]}', "Row 2, `id` holds NaN or infinity"),
        ('{"text": "w1", "id": "\\ud83d"}', "Row 2, `id` holds half of a surrogate pair"),
        ('{"text": "w1", "\\ud83d": 1}', ""),
        (
            '{"text": "w1", "id": ' + deep(150) + "}",
            "Row 2, `id` holds lists or objects that are nested more than 100",
        ),
        (
            '{"text": "w1", "id": ' + deep(900) + "}",
            "Row 2, `id` holds lists or objects that are nested more than 100",
        ),
        ('{"messages": []}', "Row 2, `messages` is an empty list"),
        ('{"messages": [{"role": "user", "content": "w1"}]}', "Row 2, `messages`: the last message has the role"),
    ],
)
def test_the_server_names_the_row_and_the_field(client, row, sentence):
    """A lone surrogate or NaN in a column that nobody reads once was a 500: the answer could not be written."""
    for path in ("/score", "/explain"):
        code, error = post(client, path, '{"rows": [{"text": "w1"}, ' + row + "]}")
        assert code == 422 and sentence in error
        assert_one_sentence(error)


@pytest.mark.parametrize("value", [deep(5000), "9" * 5000])
def test_json_that_python_cannot_read_is_refused_by_the_server(client, value):
    code, _ = post(client, "/score", '{"rows": [{"text": "w1", "id": ' + value + "}]}")
    assert code == 422


def test_what_is_nested_less_deep_is_scored(client):
    body = '{"rows": [{"text": "w1", "id": ' + deep(99) + "}]}"
    assert [post(client, path, body)[0] for path in ("/score", "/explain")] == [200, 200]


def test_a_row_that_was_scored_before_gets_its_new_rewards_alone(client):
    rows = [{"text": "w1", "reward_error": "Row 1 ...", "chosen_reward": 3.0, "id": 1}]
    scored = client.post("/score", json={"rows": rows}).json()["rows"]
    assert scored[0].keys() == {"text", "id", "reward"}
