"""The HTTP server: the rewards of `sparserm score`, in everybody's protocol, and what it refuses."""

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from world import make_rows, start_server

pytest.importorskip("fastapi")
pytestmark = pytest.mark.works_with(
    "fastapi",
    "`sparserm serve`, spoken to as OpenRLHF, verl and vLLM's clients do",
)

httpx = pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from sparserm_hf.cli.main import main  # noqa: E402
from sparserm_hf.conversations.chat_templates import render  # noqa: E402
from sparserm_hf.integrations.reward_function import SparseRMReward  # noqa: E402
from sparserm_hf.scoring.reward_models import load_reward_model  # noqa: E402
from sparserm_hf.scoring.scored_rows import score_rows  # noqa: E402
from sparserm_hf.server.app import create_app  # noqa: E402


@pytest.fixture(scope="module")
def loaded(trained):
    return load_reward_model(str(trained), torch.device("cpu"))


@pytest.fixture(scope="module")
def expected(loaded):
    """Rows, and what `sparserm score` makes of them."""
    return list(score_rows(*loaded, make_rows(12, seed=9)))


def strip(row):
    return {name: value for name, value in row.items() if not name.endswith("reward")}


def assert_scored(scored, expected):
    for one, other in zip(scored, expected, strict=True):
        assert strip(one) == strip(other)
        for name in ("chosen_reward", "rejected_reward"):
            assert one[name] == pytest.approx(other[name], abs=1e-5)


def client_of(loaded, **settings):
    return TestClient(create_app(*loaded, "model", **settings), base_url="http://localhost")


def test_each_protocol_gives_the_rewards_of_score(loaded, trained, expected, equal):
    tokenizer = loaded[1]
    texts = [render(tokenizer, row["prompt"] + row["chosen"]) for row in expected]
    rewards = [row["chosen_reward"] for row in expected]
    with client_of(loaded) as client:
        scored = client.post("/score", json={"rows": [strip(row) for row in expected]}).json()["rows"]
        assert_scored(scored, expected)
        equal("`sparserm serve`, /score", rewards, [row["chosen_reward"] for row in scored], 1e-6)

        answer = client.post("/get_reward", json={"query": texts, "prompts": texts, "labels": [None] * 12}).json()
        assert answer["rewards"] == answer["scores"]
        equal("`sparserm serve`, /get_reward", rewards, answer["rewards"], 1e-6)
        logged = {}
        function = SparseRMReward(str(trained))
        chosen = [row["chosen"] for row in expected]
        function(
            [row["prompt"] for row in expected], chosen, log_extra=lambda name, values: logged.update({name: values})
        )
        for group, values in answer["extra_logs"].items():
            assert values == pytest.approx(logged[f"model/{group}"], abs=1e-5)
        assert answer["extra_logs"].keys() == {"chosen", "rejected"}

        payload = {"input": texts, "model": "model", "activation": False, "add_special_tokens": False}
        given = [item["probs"][-1] for item in client.post("/classify", json=payload).json()["data"]]
        equal("`sparserm serve`, /classify", rewards, given, 1e-6)
        alone = client.post("/classify", json={"input": texts[0]}).json()["data"]
        assert len(alone) == 1 and alone[0]["probs"] == [pytest.approx(expected[0]["chosen_reward"], abs=1e-5)]
        asked = [{"messages": row["prompt"] + row["chosen"], "model": "model"} for row in expected]
        given = [client.post("/classify", json=body).json()["data"][-1]["probs"][-1] for body in asked]
        equal("`sparserm serve`, /classify with messages", rewards, given, 1e-6)
        # As verl asks SGLang: one text at a time, without the token that begins a text.
        bare = [{"input": text.removeprefix(tokenizer.bos_token or ""), "model": "model"} for text in texts]
        given = [client.post("/v1/embeddings", json=body).json()["data"][-1]["embedding"][-1] for body in bare]
        equal("`sparserm serve`, /v1/embeddings", rewards, given, 1e-6)


IMAGE = [{"role": "user", "content": [{"type": "image", "image": "x"}]}, {"role": "assistant", "content": "w1"}]


def test_bad_requests_are_told_which_field(loaded):
    cases = [
        ("/get_reward", {"prompts": ["a"]}, 422, "query: Field required"),
        ("/get_reward", {"query": []}, 422, "query: "),
        ("/get_reward", {"query": ["w1", 3]}, 422, "query.1: "),
        ("/get_reward", {"query": ["w1", ""]}, 422, "Text 2 has an empty text"),
        ("/classify", {"input": []}, 422, "input: "),
        ("/classify", {"input": {"text": "w1"}}, 422, "input"),
        ("/classify", {"input": "w1", "messages": IMAGE}, 422, "body: Give either `input` or `messages`."),
        ("/classify", {"messages": IMAGE}, 422, "with a part of the type 'image', but SparseRM scores text"),
        ("/classify", {"messages": []}, 422, "messages: "),
        ("/v1/embeddings", {"input": ["w1", ""]}, 422, "Text 2 has an empty text"),
        ("/score", {"rows": [{"text": "w1"}, {"words": "w1"}]}, 422, "rows: Row 2 has the columns words"),
        ("/score", {"rows": [{"messages": IMAGE}]}, 422, "with a part of the type 'image', but SparseRM scores text"),
        ("/score", {"rows": [{"text": "w1 " * 2000}]}, 413, "larger than 1000 bytes"),
        ("/nothing", {}, 404, "Not Found"),
    ]
    with client_of(loaded, max_body=1000) as client:
        for path, body, code, sentence in cases:
            answer = client.post(path, json=body)
            assert (answer.status_code, sentence in answer.text) == (code, True), (path, body, answer.text)
        broken = client.post("/score", content=b"{", headers={"Content-Type": "application/json"})
        assert broken.status_code == 422 and "JSON" in broken.json()["error"]
        assert client.get("/score").status_code == 405


def test_a_body_that_hides_its_length_is_counted(loaded):
    def body():
        yield from [b"x" * 600] * 2

    with client_of(loaded, max_body=1000) as client:
        assert client.post("/score", content=body()).status_code == 413


def test_a_token_is_asked_for(loaded):
    with client_of(loaded, token="secret") as client:
        body = {"rows": [{"text": "w1"}]}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.post("/score", json=body, headers=headers)
            assert answer.status_code == 401 and "token" in answer.json()["error"]
        assert client.post("/score", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.post("/score", content=b"{" * 5000).status_code == 401  # neither read nor parsed
        assert client.get("/openapi.json").status_code == 401
        assert client.get("/health").json() == {"status": "ok", "model": "model"}


def test_a_full_queue_answers_429_and_what_was_accepted_is_scored(loaded, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    from sparserm_hf.server import app

    real = app.score_texts

    def slow(model, texts):
        started.set()
        go_on.wait(20)
        return real(model, texts)

    monkeypatch.setattr(app, "score_texts", slow)
    with client_of(loaded, max_waiting=3) as client, ThreadPoolExecutor(2) as pool:

        def post(count):
            return client.post("/score", json={"rows": [{"text": "w1"}] * count})

        first = pool.submit(post, 1)
        assert started.wait(20)  # it is being scored: the queue is empty
        second = pool.submit(post, 3)
        while "sparserm_waiting_texts 3.0" not in client.get("/metrics").text:
            pass
        full = post(1)
        assert full.status_code == 429 and full.headers["Retry-After"] == "1" and "3 texts wait" in full.text
        go_on.set()
        assert first.result().status_code == second.result().status_code == 200
        text = client.get("/metrics").text
        assert 'sparserm_requests_total{code="429",path="/score"} 1.0' in text
        assert "sparserm_texts_total 4.0" in text


def test_an_error_while_scoring_reaches_its_callers_and_no_one_else(loaded, monkeypatch):
    from sparserm_hf.server import app

    real = app.score_texts
    monkeypatch.setattr(app, "score_texts", lambda *args: 1 / 0)
    with TestClient(
        create_app(*loaded, "model"), base_url="http://localhost", raise_server_exceptions=False
    ) as client:
        assert client.post("/score", json={"rows": [{"text": "w1"}]}).status_code == 500
        monkeypatch.setattr(app, "score_texts", real)
        assert client.post("/score", json={"rows": [{"text": "w1"}]}).status_code == 200


@pytest.fixture
def server(trained):
    process, address = start_server(trained)
    yield process, address
    process.kill()


def test_many_callers_at_once_each_get_their_own_answer_and_a_stop_loses_none(server, expected):
    process, address = server
    rows = [strip(row) for row in expected]

    def ask(number):
        part = [rows[i % 12] for i in range(number, number + 1 + number % 5)]
        answer = httpx.post(f"{address}/score", json={"rows": part}, timeout=60).json()
        assert_scored(answer["rows"], [expected[i % 12] for i in range(number, number + 1 + number % 5)])
        return len(part)

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(ask, range(200))) == 600
        late = [pool.submit(ask, number) for number in range(32)]
        while httpx.get(f"{address}/metrics").text.count(
            "sparserm_texts_total 1200.0"
        ):  # two a row; until one of them is in
            pass
        process.send_signal(signal.SIGTERM)
        answered = 0
        for future in late:
            try:
                future.result()
                answered += 1
            except httpx.TransportError:
                pass  # it came after the stop
    assert process.wait(30) == 0
    assert answered >= 1


@pytest.mark.works_with(
    "opentelemetry-instrumentation-fastapi",
    "`sparserm serve`: each request is a span in its caller's trace",
)
def test_opentelemetry_sees_each_request_in_its_callers_trace(trained):
    pytest.importorskip("opentelemetry.instrumentation.fastapi")
    runner = ("-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()", sys.executable)
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    process, address = start_server(trained, *runner, **exporters)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert httpx.post(f"{address}/score", json={"rows": [{"text": "w1"}]}, headers=headers).status_code == 200
    process.send_signal(signal.SIGTERM)
    written = process.communicate(timeout=30)[0]
    assert '"name": "POST /score"' in written and f'"trace_id": "0x{trace}"' in written


def test_it_serves_others_only_with_a_token_and_says_when_a_port_is_taken(server, trained, capsys, monkeypatch):
    monkeypatch.delenv("SPARSERM_TOKEN", raising=False)
    assert main(["serve", str(trained), "--host", "0.0.0.0"]) == 2
    assert "bearer token" in capsys.readouterr().err
    port = server[1].rpartition(":")[2]
    assert main(["serve", str(trained), "--port", port]) == 2
    assert "Nothing can be served" in capsys.readouterr().err


def test_explain_says_what_made_the_rewards(loaded, expected):
    rows = [strip(row) for row in expected[:2]]
    with client_of(loaded) as client:
        answer = client.post("/explain", json={"rows": rows, "top": 3}).json()["rows"]
        assert client.post("/explain", json={"rows": [{"nothing": 1}]}).json()["error"].startswith("rows: Row 1")
        assert client.post("/explain", json={"rows": rows * 9}).status_code == 422
        assert "sparserm_texts_total 4.0" in client.get("/metrics").text
    with client_of(loaded, max_waiting=3) as client:
        assert client.post("/explain", json={"rows": rows}).status_code == 429
    for row, other in zip(answer, expected, strict=False):
        assert row["chosen_reward"] == pytest.approx(other["chosen_reward"], abs=1e-4)
        assert len(row["chosen_explanation"]["latents"]) == len(row["difference"]) == 3
