"""The manual's compatibility table is what the tests have run."""

from compatibility import TABLE, read_claims


def test_the_compatibility_table_has_the_claims_of_the_tests(claims):
    made = {(library, claim) for library, claim, *_ in claims.held}
    written = [(library, claim) for library, _, claim, _ in read_claims(TABLE.read_text())]
    mend = "run python -m pytest --write-compatibility"
    assert made <= set(written), mend
    if claims.complete:
        assert made == set(written) and len(made) == len(written), mend
