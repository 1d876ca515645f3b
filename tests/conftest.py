"""Nothing in the tests may reach for the network or for somebody's cache."""

import os
import sys
import tempfile

import pytest

_home = tempfile.TemporaryDirectory()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _home.name, "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(autouse=True)
def quiet():
    """No progress bars of transformers between the dots."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def pytest_terminal_summary(terminalreporter):
    """The parity table of test_sae_parity.py, without -s."""
    parity = sys.modules.get("test_sae_parity")
    if parity and any(row.errors for row in parity.ROWS):
        terminalreporter.section("SAE parity")
        for line in parity.table():
            terminalreporter.write_line(line)
