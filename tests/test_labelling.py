"""`sparserm label`: what an answer writes, which pair comes next, and the page in a browser."""

import json
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from world import make_rows, write_jsonl

pytest.importorskip("fastapi")
pytestmark = pytest.mark.works_with("fastapi", "`sparserm label`, in a browser too")

httpx = pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from sparserm_hf import SparseRMError, SparseRMTrainer, load_preferences, load_reward_model, score_rows  # noqa: E402
from sparserm_hf.cli.main import main  # noqa: E402
from sparserm_hf.labelling.label_files import EVERY, HELD_OUT_FILE, TRAINING_FILE, LabelFiles, is_held_out, pair_key  # noqa: E402
from sparserm_hf.labelling.labelling import train_on_labels  # noqa: E402
from sparserm_hf.labelling.labelling_settings import LabellingConfig  # noqa: E402
from sparserm_hf.labelling.learner import Answer, Pairs, learn, pick  # noqa: E402
from sparserm_hf.labelling.page import create_page  # noqa: E402
from sparserm_hf.labelling.pool import Pool, pairs_of  # noqa: E402
from sparserm_hf.labelling.session import EXCLUDED_FILE, Session  # noqa: E402
from sparserm_hf.server.listening import Server, open_socket  # noqa: E402
from sparserm_hf.training import RepresentedTexts  # noqa: E402

TOKEN = "a-token"


def questions(count=80, seed=3):
    return [
        {"prompt": row["prompt"], "responses": [row[side][0]["content"] for side in ("rejected", "chosen")]}
        for row in make_rows(count, seed)
    ]


def good_words(text):
    return sum(int(word[1:]) < 30 for word in text.split())


@pytest.fixture(scope="module")
def settings(world):
    return {"check_sae": False, "cache_dir": str(world / "cache"), "dtype": "float32"}


@pytest.fixture(scope="module")
def pool(world, settings, tmp_path_factory):
    config = LabellingConfig(str(tmp_path_factory.mktemp("pool")), **settings)
    rows = pairs_of(questions())
    return Pool.represent(rows, SparseRMTrainer(str(world / "base"), str(world / "sae"), config.training(), rows))


@pytest.fixture
def start(pool, tmp_path):
    def start(finish=lambda excluded: f"Trained without {excluded}.", excluded=()):
        session = Session(pool, tmp_path, finish, list(excluded))
        session.wait()
        return session

    return start


def better(state):
    return "left" if good_words(state["pair"]["left"]) > good_words(state["pair"]["right"]) else "right"


def answer(session, count):
    """Answer as somebody who likes the words w0 to w29."""
    for _ in range(count):
        state = session.state()
        session.answer(state["pair"]["id"], state["number"], better(state))
        session.wait()
    return session.state()


def test_each_answer_is_an_ordinary_preference_pair_on_disk(start, tmp_path):
    session = start()
    for count in range(1, 11):
        answer(session, 1)
        rows = [row for name in (TRAINING_FILE, HELD_OUT_FILE) for row in _lines(tmp_path / name)]
        assert sorted(row["answer"] for row in rows) == list(range(1, count + 1))
    for row in rows:
        assert good_words(row["chosen"][0]["content"]) > good_words(row["rejected"][0]["content"])
    assert len(load_preferences(str(tmp_path / TRAINING_FILE))) == 8
    assert len(load_preferences(str(tmp_path / HELD_OUT_FILE))) == 2 == 10 // EVERY


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_held_out_prompt_is_never_trained_on(start, tmp_path):
    answer(start(), 30)
    assert not any(is_held_out(row["prompt"]) for row in _lines(tmp_path / TRAINING_FILE))
    assert all(is_held_out(row["prompt"]) for row in _lines(tmp_path / HELD_OUT_FILE))


def test_it_learns_what_is_answered_and_says_how_well(start, pool):
    session = start()
    state = answer(session, 60)
    liked = [Answer(i, int(good_words(row["rejected"][0]["content"]) > good_words(row["chosen"][0]["content"])))
             for i, row in enumerate(pool.rows)]  # fmt: skip
    margins = pool.pairs.margins(session._learned.rewards, liked)
    assert (margins > 0).mean() > 0.7 and not state["fitting"]
    held_out = [i for i, row in enumerate(pool.rows) if pair_key(row) in map(pair_key, session.files.held_out)]
    assert state["accuracy"]["pairs"] == len(held_out) == 12
    assert state["accuracy"]["value"] == pytest.approx((margins[held_out] > 0).mean())
    assert len(state["latents"]) == 12 and all(latent["on"] for latent in state["latents"])
    shares = [abs(latent["share"]) for latent in state["latents"]]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1


def test_undo_takes_answers_back_in_their_order_across_a_restart(start, tmp_path):
    session = start()
    answer(session, 7)
    before = session.state()
    after = answer(session, 1)
    assert session.undo() | {"fitting": False} == before | {"pair": after["pair"] and session.state()["pair"]}
    assert session.state()["pair"]["id"] == before["pair"]["id"]  # shown again
    session = start()
    for left in (6, 5, 4, 3, 2, 1, 0, 0):
        state = session.undo()
        assert state["number"] == left
    assert not _lines(tmp_path / TRAINING_FILE) and not _lines(tmp_path / HELD_OUT_FILE)


def test_the_second_of_two_tabs_is_told(start):
    session = start()
    client = TestClient(
        create_page(session, TOKEN), base_url="http://localhost", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    seen = client.get("/state").json()
    body = {"pair": seen["pair"]["id"], "number": seen["number"], "side": "left"}
    assert client.post("/answer", json=body).json()["number"] == 1
    refused = client.post("/answer", json=body)
    assert refused.status_code == 409 and "answered elsewhere" in refused.json()["error"]
    assert client.get("/state").json()["number"] == 1


def test_a_skipped_pair_is_neither_labelled_nor_shown_again(start, pool):
    session, seen = start(), set()
    for _ in range(len(pool.rows)):
        state = session.state()
        seen.add(state["pair"]["id"])
        state = session.answer(state["pair"]["id"], 0, "neither")
    assert len(seen) == len(pool.rows) and state["pair"] is None and state["number"] == 0


def test_a_latent_that_is_switched_off_is_not_looked_at_even_after_a_restart(start, tmp_path):
    session = start()
    first = answer(session, 40)["latents"][0]["id"]
    session.switch(first, False)
    session.wait()
    state = session.state()
    assert [latent["id"] for latent in state["latents"] if not latent["on"]] == [first]
    assert first not in session._learned.fitted.selected.latents
    again = start(excluded=json.loads((tmp_path / EXCLUDED_FILE).read_text()))
    assert first not in again._learned.fitted.selected.latents
    again.switch(first, True)
    again.wait()
    assert first in again._learned.fitted.selected.latents and all(of["on"] for of in again.state()["latents"])


def test_the_pair_of_most_doubt_comes_next():
    """Two directions are planted; the answers are about the first only, so the pairs of the second are doubtful."""
    rng = np.random.default_rng(0)
    vectors, decoder = rng.normal(size=(160, 24)), np.eye(24)[:20]
    texts = RepresentedTexts(vectors, np.maximum(vectors @ decoder.T, 0), decoder)
    pairs = Pairs(np.arange(160).reshape(80, 2), np.arange(80))
    wanted = vectors[:, 0]
    answers = [Answer(i, int(wanted[2 * i] < wanted[2 * i + 1])) for i in range(60)]
    learned, left = learn(texts, pairs, answers), np.arange(60, 80)
    chosen = pick(pairs, left, answers, learned, rng)
    margins = np.abs(learned.rewards[pairs.texts[left, 0]] - learned.rewards[pairs.texts[left, 1]])
    assert chosen in left and learned.doubts[chosen] == learned.doubts[left].max()
    assert margins[chosen - 60] < np.median(margins)
    # Before there is an ensemble: a prompt without an answer, if there is one.
    both = Pairs(pairs.texts, np.arange(80) // 2)
    assert {pick(both, np.arange(1, 4), answers[:1], None, rng) for _ in range(20)} <= {2, 3}


def test_the_trained_model_is_that_of_the_command(start, world, settings, tmp_path):
    answer(start(), 40)
    config = LabellingConfig(str(tmp_path), **settings)
    said = train_on_labels(config, str(world / "base"), str(world / "sae"), None, [5])
    assert re.search(r"trained on 32 labels: \d+\.\d% \(.*\) right on 8 held-out labels", said)
    arguments = ["--model", world / "base", "--sae", world / "sae", "--dataset", tmp_path / TRAINING_FILE]
    arguments += ["--eval_dataset", tmp_path / HELD_OUT_FILE, "--output_dir", tmp_path / "by-command"]
    arguments += [
        "--no_check_sae",
        "--cache_dir",
        settings["cache_dir"],
        "--dtype",
        "float32",
        "--exclude_latents",
        "5",
    ]
    assert main(["train", *map(str, arguments)]) == 0
    rewards = [[row["chosen_reward"] for row in score_rows(*load_reward_model(str(tmp_path / name)), make_rows(4))]
               for name in ("reward-model", "by-command")]  # fmt: skip
    assert rewards[0] == rewards[1]
    config = json.loads((tmp_path / "reward-model" / "config.json").read_text())
    assert 5 not in [latent["id"] for latent in config["latents"]]


def test_what_goes_wrong_is_said_on_the_page(start):
    def fail(excluded):
        raise SparseRMError("There are 1 usable pairs, but at least 2 are needed: give more pairs.")

    session = start(fail)
    assert session.finish()["finishing"]
    session.wait()
    state = session.state()
    assert not state["finishing"] and "at least 2 are needed" in state["message"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [('{"prompt": "x"}\n', "holds something else than labels"), ('{"a":\n', "holds something else than labels")],
)
def test_a_foreign_file_of_labels_is_refused(tmp_path, content, sentence):
    (tmp_path / TRAINING_FILE).write_text(content)
    with pytest.raises(SparseRMError, match=sentence):
        LabelFiles(tmp_path)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": "x"}], "needs `responses`"),
        ([{"prompt": "x", "responses": "yes"}], "needs `responses`"),
        ([{"prompt": "x", "responses": ["a", "a", " "]}], "two different responses"),
        ([{"responses": ["a", "b"]}], "needs a `prompt` or a `question`"),
        ([{"prompt": "x", "responses": ["a", 3]}], "needs `responses`"),
        ([{"prompt": "x", "responses": ["a", "\ud800"]}], "a response"),
    ],
)
def test_rows_without_a_choice_are_refused(rows, sentence):
    with pytest.raises(SparseRMError, match=re.escape(sentence)):
        pairs_of(rows)


def test_without_the_token_there_is_only_the_empty_page(start):
    client = TestClient(create_page(start(), TOKEN), base_url="http://localhost")
    assert client.get("/").status_code == 200 and TOKEN not in client.get("/").text
    assert client.get("/state").status_code == 401 and client.post("/undo").status_code == 401
    foreign = TestClient(create_page(start(), TOKEN), base_url="http://example.com")
    assert foreign.get("/").status_code == 421


@pytest.fixture
def served(start):
    """The address of a session's page, and the session."""
    session = start()
    server, listening = Server(create_page(session, TOKEN), grace=1), open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/#{TOKEN}", session
    server.should_exit = True
    thread.join(20)


def wait(page, condition):
    """Wait for something in a page, whose policy forbids playwright's own way."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not come true: {page.inner_text('body')}")


def test_the_page_in_a_browser(browser, served, tmp_path):
    address, session = served
    page, wrong = browser.new_page(viewport={"width": 1100, "height": 800}), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    for number in range(1, 16):
        wait(page, "state && state.pair && !state.fitting")
        left = good_words(page.inner_text("#left")) > good_words(page.inner_text("#right"))
        page.keyboard.press("ArrowLeft" if left else "ArrowRight")
        wait(page, f"state.number === {number}")
    assert all(good_words(row["chosen"][0]["content"]) > good_words(row["rejected"][0]["content"])
               for row in _lines(tmp_path / TRAINING_FILE) + _lines(tmp_path / HELD_OUT_FILE))  # fmt: skip
    page.wait_for_selector("#list input")
    assert "15 labels · right on" in page.inner_text("#count")
    page.keyboard.press("u")
    wait(page, "state.number === 14")
    second = browser.new_page()
    second.goto(address)
    wait(second, "state && state.number === 14")
    stale = json.dumps({"pair": page.evaluate("state.pair.id"), "number": 14, "side": "right"})
    second.click("#left-button")
    wait(second, "state.number === 15")
    page.evaluate(f"act('answer', {stale})")  # of the pair that the other tab has answered
    wait(page, "state.number === 15 && problem")
    assert "answered elsewhere" in page.inner_text("#message") and len(session.files.rows) == 15
    wait(page, "!state.fitting")
    page.uncheck("#list label:first-child input")
    page.wait_for_selector("#list .off")
    page.click("#finish-button")
    wait(page, "state.message.startsWith('Trained without [')")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    bare = browser.new_page()
    bare.goto(address.partition("#")[0])
    wait(bare, "document.getElementById('message').textContent.includes('lacks its token')")
    assert not wrong
    for opened in (page, second, bare):
        opened.close()


def test_a_killed_command_has_written_each_answer(world, settings, tmp_path):
    rows = write_jsonl(tmp_path / "questions.jsonl", questions(12))
    command = [sys.executable, "-m", "sparserm_hf.cli", "label", rows, "--model", str(world / "base"), "--sae"]
    command += [str(world / "sae"), "--output_dir", str(tmp_path / "out"), "--port", "0", "--no_check_sae"]
    command += ["--cache_dir", settings["cache_dir"], "--dtype", "float32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address, token = re.search(r"(http://127\S+)/#(\S+)", process.stdout.readline()).groups()
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"})
        for number in range(2):
            state = client.get("/state").json()
            client.post("/answer", json={"pair": state["pair"]["id"], "number": number, "side": "left"})
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [row["answer"] for row in LabelFiles(tmp_path / "out").rows] == [1, 2]


def test_a_policy_writes_the_responses_once(world, policy, settings, tmp_path, monkeypatch, capsys):
    from sparserm_hf.labelling import labelling

    served = []
    monkeypatch.setattr(labelling, "run_app", lambda page, *rest, **more: served.append(rest))
    rows = write_jsonl(
        tmp_path / "questions.jsonl", [{"question": " ".join(f"w{i}" for i in range(n, n + 4))} for n in range(8)]
    )
    arguments = [
        "label",
        rows,
        "--policy",
        policy,
        "--model",
        world / "base",
        "--sae",
        world / "sae",
        "--no_check_sae",
    ]
    arguments += [
        "--output_dir",
        tmp_path / "out",
        "--max_new_tokens",
        "8",
        "--num_responses",
        "3",
        "--dtype",
        "float32",
    ]
    arguments += ["--cache_dir", settings["cache_dir"]]
    assert main([str(argument) for argument in arguments]) == 0
    written = _lines(tmp_path / "out" / "responses.jsonl")
    assert [len(row["responses"]) for row in written] == [3] * 8 and served == [("127.0.0.1", 8001, 2)]
    monkeypatch.setattr(labelling, "_write_responses", None)  # not again
    assert main([str(argument) for argument in arguments]) == 0
    assert main([*map(str, arguments), "--num_responses", "2"]) == 2
    assert "something else than 2 responses" in capsys.readouterr().err
    (tmp_path / "out" / "responses.jsonl").write_text('{"prompt": \n')
    assert main([*map(str, arguments)]) == 2
    assert "something else than 3 responses" in capsys.readouterr().err
