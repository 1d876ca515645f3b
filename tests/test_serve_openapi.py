"""The server does what its OpenAPI says, by schemathesis, which wants other versions of pytest and rich than ours."""

import re
import subprocess
from pathlib import Path

import pytest
from test_serve import server  # noqa: F401  # a fixture

PROGRAM = Path(__file__).parent.parent / ".venv-schemathesis" / "bin" / "st"
# What the schema allows is not all scored: a text may be empty, or a row of another form.
OPTIONS = ["--max-examples", "100", "--seed", "1", "--generation-deterministic"]
OPTIONS += ["--exclude-checks", "positive_data_acceptance"]


@pytest.mark.skipif(not PROGRAM.exists(), reason="its environment is not set up: run the tests by `make test`")
def test_every_request_is_answered_as_the_openapi_says(server, tmp_path, record_property):  # noqa: F811
    """Codes, media types, forms and methods, for what the schema allows and for what it does not."""
    _, address = server
    command = [PROGRAM, "run", f"{address}/openapi.json", *OPTIONS]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:]
    generated, passed = map(int, re.search(r"(\d+) generated, (\d+) passed", ran.stdout).groups())
    assert generated == passed > 200 and "7 selected / 7 total" in ran.stdout
    record_property("tries", generated)
