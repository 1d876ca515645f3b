"""Nothing in the tests may reach for the network or for somebody's cache."""

import os
import tempfile

import pytest

_home = tempfile.TemporaryDirectory()
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _home.name, "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(autouse=True)
def quiet():
    """No progress bars of transformers between the dots."""
    from transformers.utils import logging

    logging.disable_progress_bar()
