"""What tests say of other people's libraries: the manual's compatibility table, and a table of equal rewards.

    python -m pytest --write-compatibility

A claim (the marker `works_with`) is written where all of its tests passed; that the table has the claims of the tests
is itself tested. Rewards that tests compare by the fixture `equal` go to `benchmarks/results/equality.md`. What a run
does not test stays as it is, for some libraries are tested in environments of their own.
"""

import re
from importlib import metadata
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TABLE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- compatibility: made by the tests -->", "<!-- end of compatibility -->"
EQUALITY = """# Equal rewards

The rewards of a checkpoint by other ways than `sparserm score` or the model itself; differences relative to rewards
above 1. Made by `python -m pytest --write-compatibility` on tiny random models."""
HEADER = ["| | version | tested | largest difference |", "|---|---|---|---:|"]
EQUAL = ROOT / "benchmarks" / "results" / "equality.md"
EQUAL_HEADER = ["| rewards by way of | values | largest difference |", "|---|---:|---:|"]


def versions(library, environments):
    """The installed versions of a library, here or in environments beside the repository."""
    if not environments:
        return metadata.version(library)
    found = []
    for environment in environments:
        paths = [str(path) for path in (ROOT / environment).glob("lib/python*/site-packages")]
        found += [d.version for d in metadata.distributions(name=library, path=paths)]
    return ", ".join(found)


class Claims:
    """What the tests of a session claim, and which claims held."""

    def __init__(self):
        self.held = {}
        self.apart = {}  # the largest difference of rewards in the tests of a claim
        self.complete = False

    def collect(self, session):
        """Note the claims of collected tests: `works_with(library, claim, *environments)`."""
        options = session.config.option
        files = {item.path for item in session.items}
        self.complete = files >= set(TESTS.glob("test_*.py")) and not (options.keyword or options.markexpr)
        for item in session.items:
            for mark in item.iter_markers("works_with"):
                self.held.setdefault(mark.args, {})[item.nodeid] = False

    def note(self, report):
        """Note that a test passed."""
        if report.when == "call" and report.passed:
            for tests in self.held.values():
                if report.nodeid in tests:
                    tests[report.nodeid] = True

    def differ(self, claim, difference):
        """Note by how much rewards differ in a test of a claim."""
        self.apart[claim] = max(difference, self.apart.get(claim, 0.0))

    def add(self, held, apart, complete):
        """Add what a worker of pytest-xdist collected and ran: each collects all tests, and runs some."""
        self.complete |= complete
        for claim, difference in apart.items():
            self.differ(claim, difference)
        for claim, tests in held.items():
            mine = self.held.setdefault(claim, {})
            for test, passed in tests.items():
                mine[test] = mine.get(test, False) or passed

    def rows(self):
        """(library, versions, claim, largest difference) where all tests of a claim passed, by library."""
        rows = []
        for args in sorted(self.held, key=lambda claim: claim[0].lower()):
            if all(self.held[args].values()):
                library, claim, *where = args
                difference = f"{self.apart[args]:.0e}".replace("0e+00", "0") if args in self.apart else ""
                rows.append((library, versions(library, where), claim, difference))
        return rows


class Equalities:
    """Rewards that came by two ways, and how far they were apart."""

    def __init__(self):
        self.found = {}

    def check(self, what, ours, theirs, tolerance=1e-4):
        """Assert that values are equal to a tolerance, relative to those above 1; return the largest difference.

        Args:
            what: The way that `theirs` came by, as the table says it.
            ours: Numbers in any nesting.
            theirs: As many.
            tolerance: The most that they may differ.
        """
        ours, theirs = (np.asarray(side, dtype=float).ravel() for side in (ours, theirs))
        assert ours.shape == theirs.shape and ours.size
        difference = np.abs(ours - theirs) / np.maximum(1, np.abs(ours))
        assert difference.max() <= tolerance, f"{what}: {ours} and {theirs}"
        self.add({what: (ours.size, float(difference.max()))})
        return float(difference.max())

    def add(self, found):
        """Add values and largest differences, of a comparison or of a worker of pytest-xdist."""
        for what, (more, difference) in found.items():
            count, largest = self.found.get(what, (0, 0.0))
            self.found[what] = count + more, max(largest, difference)

    def rows(self):
        """(way, number of values, largest difference)."""
        return [(what, str(count), f"{largest:.1e}") for what, (count, largest) in sorted(self.found.items())]


def table(rows, header=HEADER):
    return "\n".join([*header, *(f"| {' | '.join(row)} |" for row in rows)])


def read_rows(text):
    """The cells of each row of the first table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[len(HEADER) :]]


def read_claims(page):
    """(library, version, claim, largest difference) of each row of the manual's table."""
    return read_rows(page.split(BEGIN)[1].split(END)[0])


def library_of(way):
    """The library that a row of equal rewards begins with."""
    return re.match(r"[\w-]*", way)[0].lower()


def write(rows, equalities, complete):
    """Write the manual's table and the file of equal rewards.

    What did not run stays; after a complete run, only that of libraries which did not run at all.
    """
    page = TABLE.read_text()
    ran = {(library, claim) for library, _, claim, _ in rows}
    libraries = {library for library, _ in ran}
    others = [
        row for row in read_claims(page) if row[0] not in libraries or (not complete and (row[0], row[2]) not in ran)
    ]
    rows = sorted([*others, *rows], key=lambda row: row[0].lower())
    before, _, rest = page.partition(BEGIN)
    TABLE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")
    apart = {row[0].removesuffix("-cpu") for row in others}
    known = [row for row in read_rows(EQUAL.read_text()) if row[0] not in equalities.found]
    kept = [row for row in known if not complete or library_of(row[0]) in apart]
    EQUAL.write_text(f"{EQUALITY}\n\n{table(sorted([*kept, *equalities.rows()]), EQUAL_HEADER)}\n")
