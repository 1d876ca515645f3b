"""Nothing in the tests may reach for the network or for somebody's cache."""

import os
import shutil
import sys
import tempfile

import pytest
from compatibility import EQUAL_HEADER, Claims, Equalities, table, write

_home = tempfile.TemporaryDirectory()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _home.name, "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(autouse=True)
def quiet():
    """No progress bars of transformers between the dots."""
    from transformers.utils import logging

    logging.disable_progress_bar()


CLAIMS, EQUALITIES = Claims(), Equalities()
PARITY = []  # lines of the SAE parity table, from the worker that made it


def pytest_addoption(parser):
    parser.addoption("--write-compatibility", action="store_true", help="write tested versions into the manual")
    parser.addoption("--write-architectures", action="store_true", help="write docs/architectures.md")


def pytest_configure(config):
    config.addinivalue_line("markers", "works_with(library, claim, *environments): see compatibility.py")


def pytest_collection_finish(session):
    CLAIMS.collect(session)


def pytest_runtest_logreport(report):
    CLAIMS.note(report)


def sae_parity():
    """The lines of the SAE parity table, if its tests ran here."""
    parity = sys.modules.get("test_sae_parity")
    return parity.table() if parity and any(row.errors for row in parity.ROWS) else []


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands over what its tests noted."""
    if hasattr(session.config, "workeroutput"):
        noted = CLAIMS.held, CLAIMS.apart, CLAIMS.complete, EQUALITIES.found, sae_parity()
        session.config.workeroutput["noted"] = noted


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """The process that prints takes it over; a worker that died says nothing, and its claims are not held."""
    nothing = {}, {}, False, {}, []
    held, apart, complete, found, lines = getattr(node, "workeroutput", {}).get("noted", nothing)
    CLAIMS.add(held, apart, complete)
    EQUALITIES.add(found)
    PARITY.extend(lines)


@pytest.fixture(scope="session")
def claims():
    """What the collected tests claim to work with."""
    return CLAIMS


@pytest.fixture
def equal(request):
    """Asserts that rewards are equal, and notes by how much they are not."""

    def check(*compared):
        difference = EQUALITIES.check(*compared)
        for mark in request.node.iter_markers("works_with"):
            CLAIMS.differ(mark.args, difference)

    return check


def pytest_terminal_summary(terminalreporter, config):
    """The tables that tests make, without -s."""
    rows = CLAIMS.rows()
    if rows:
        terminalreporter.section("compatibility")
        terminalreporter.write_line(table(rows))
    if config.getoption("--write-compatibility"):
        write(rows, EQUALITIES, CLAIMS.complete)
    if EQUALITIES.found:
        terminalreporter.section("equality")
        terminalreporter.write_line(table(EQUALITIES.rows(), EQUAL_HEADER))
    parity = PARITY or sae_parity()
    if parity:
        terminalreporter.section("SAE parity")
        for line in parity:
            terminalreporter.write_line(line)


@pytest.fixture
def reward_model(tmp_path):
    """The folder of a tiny random checkpoint."""
    from tiny import tiny_reward_model, tiny_tokenizer

    from sparserm_hf.runtime.checkpoint_folders import save_tokenizer

    folder = tmp_path / "reward-model"
    tiny_reward_model().save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder)
    return str(folder)


@pytest.fixture
def policy(tmp_path):
    """The folder of a tiny random policy."""
    from tiny import tiny_causal_lm, tiny_tokenizer

    from sparserm_hf.runtime.checkpoint_folders import save_tokenizer

    folder = tmp_path / "policy"
    tiny_causal_lm(seed=1).save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder)
    return str(folder)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A base model, an SAE and preference pairs on disk."""
    from world import write_world  # not before the environment is set

    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def trained(world):
    """A checkpoint that the command line has trained and evaluated."""
    from world import train_arguments

    from sparserm_hf.cli.main import main

    assert main(train_arguments(world, world / "model", eval_dataset=world / "test.jsonl")) == 0
    return world / "model"


# Without what a browser does by itself behind a page: no test may reach for the network.
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")  # playwright keeps an event loop running, which other tests do not expect
def browser():
    """A Chromium; a test that asks for it is skipped where playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file in a page of some size and collects what goes wrong in it."""
    pages = []

    def opened(path, width=1280, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.wrong = []
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda request: page.wrong.append(request.url) if request.url[:4] == "http" else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
