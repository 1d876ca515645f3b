"""What was attacked, how often, and what held.

    python benchmarks/faults.py

Runs the tests that attack the package, and counts: a test that tries more than once says how often in its property
`tries`. Writes `results/faults.md`.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from layers import RESULTS, machine

TESTS = Path(__file__).parent.parent / "tests"
# By class of attack, the tests: a file, or some of its functions.
ATTACKS = {
    "code in a configuration or tokenizer of a checkpoint, base model or judge": "untrusted",
    "weights that an index seeks in a pickle or outside": "weights::an_index",
    "one flipped bit in each tensor of a checkpoint": "weights::a_bit_that_flipped",
    "weights of another model, NaN or infinity, tensors too many, other layers": (
        "weights::weights_of_another weights::weights_that_are_not weights::a_tensor_too_many weights::layers_and"
    ),
    "files of others in a folder that is pushed": "hub::a_push_takes_what_was_written",
    "a push that fails": "hub::a_push_that_fails",
    "flipped bits and cuts in shards of the cache": "representations::a_shard",
    "scored parts of another file with the same footer": "ray::a_run_does_not_go_on",
    "a lost worker of Ray": "ray::a_lost_actor ray::a_run_that_gave_up",
    "SIGKILL between any two file operations over a checkpoint": "replacing::a_kill_between",
    "SIGKILL between any two file operations over a file": "replacing::a_kill_leaves_one_file",
    "SIGKILL in a run that goes on": "training::a_killed_run align::a_run_that_was_killed sae_training::a_killed_run",
    "loading a model while it is replaced": "replacing::a_reader",
    "a server's limits: huge, slow, departed and hostile clients": "serve_limits serve_sockets",
    "requests to the server, by schemathesis from its own OpenAPI": "serve_openapi",
    "200 requests of 32 callers, and a stop": "serve::many_callers",
    "hostile configurations, tokenizers, files beside a model, SAEs, rows, templates": "hostile::what_is_hostile",
    "a template that loops, a packed line of a gigabyte": "hostile::a_template_that_loops hostile::a_packed_line",
    "a chat template's own marks, written as text": "hacking::marks_in_token_ids",
    "names that steer a terminal, by command": "terminal::no_command",
    "SIGTERM while a model is written": "replacing::sigterm",
}
HEADER = """# Attacks

Each try is an attack that a test makes; it survives where the test passes: the bits are the same, nothing is lost or
let in, or one sentence refuses what was given. Made by `benchmarks/faults.py` on {machine}.

| attack | tries | survived |
|---|---:|---:|"""


def run(names: list[str]) -> list[ElementTree.Element]:
    """Run test files, without those functions that no attack names; the report's entry for each test."""
    files = [str(TESTS / f"test_{name}.py") for name in dict.fromkeys(name.split("::")[0] for name in names)]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = " or ".join(f"test_{name.replace('::', '.py and test_')}" for name in names)
        command = [
            sys.executable,
            "-m",
            "pytest",
            *files,
            "-k",
            chosen,
            f"--junitxml={report}",
            "-o",
            "junit_family=xunit1",
        ]
        subprocess.run(command, cwd=TESTS.parent)
        return list(ElementTree.parse(report).iter("testcase"))


def counts(name: str, cases: list[ElementTree.Element]) -> tuple[int, int]:
    """How many tries the tests of a name made, and how many of them survived."""
    file, _, function = name.partition("::")
    tries = survived = 0
    for case in cases:
        if case.get("classname", "").endswith(f"test_{file}") and case.get("name", "").startswith(f"test_{function}"):
            assert case.find("skipped") is None, f"{name} was skipped: set up the environments of `make test`"
            times = sum(int(p.get("value", 0)) for p in case.iter("property") if p.get("name") == "tries") or 1
            tries += times
            survived += times * (case.find("failure") is None and case.find("error") is None)
    assert tries, f"there is no test {name}"
    return tries, survived


def main() -> None:
    cases = run([name for names in ATTACKS.values() for name in names.split()])
    lines = [HEADER.format(machine=machine())]
    for attack, names in ATTACKS.items():
        tries, survived = map(sum, zip(*(counts(name, cases) for name in names.split()), strict=True))
        lines.append(f"| {attack} | {tries:,} | {survived:,} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "faults.md").write_text(text)


if __name__ == "__main__":
    main()
