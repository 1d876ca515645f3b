"""The lower bounds of setup.cfg, in an environment that has each of them as it is written there.

`make test` sets this environment up, and runs the tests there that its `LOWEST` names.
"""

import configparser
from pathlib import Path

import pytest
from compatibility import versions
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ".venv-lowest"


def requirements():
    """Each requirement of setup.cfg, of the package and of its extras, once.

    Without vLLM, which pins a torch of its own: `make test-vllm` tests the lower bound itself.
    """
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: lines for name, lines in setup["options.extras_require"].items() if name != "vllm"}
    lists = [setup["options"]["install_requires"], *extras.values()]
    lines = {line for listed in lists for line in listed.split("\n") if line and not line.startswith("%")}
    return sorted(lines)


@pytest.mark.parametrize("line", requirements())
def test_a_lower_bound_is_what_is_installed(line):
    """pip resolves upwards: scipy>=1.11 stood there while scipy 1.11 put all pairs into one group."""
    if not (ROOT / ENVIRONMENT / "installed").exists():
        pytest.skip(f"{ENVIRONMENT} is not set up: run the tests by `make test`")
    requirement = Requirement(line)
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    installed = Version(versions(requirement.name, [ENVIRONMENT]))
    assert Version(installed.public) == Version(bound), f"{line}: {installed} is installed"
