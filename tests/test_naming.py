"""Names of latents are found on half of the prompts, scored on the other half, and quote no secrets."""

import numpy as np
import pytest
from scipy import sparse

from sparserm_hf.sae.naming import Name, name_latents, shorten_description

TEXTS = [
    "I do not know , but you should never ask .",
    "No . The sky is blue and the sea is not .",
    "1 . take the bread\n- cut it\n- eat it",
    "You CAN do it , they said . Then 42 people left .",
]


def world(count=48):
    """Return the tokens of responses, each with the space before it, and the number of each response's prompt."""
    pieces = []
    for i in range(count):
        words = TEXTS[i % len(TEXTS)].replace("\n", " \n ").split(" ")
        pieces.append([word if j == 0 or word == "\n" else f" {word}" for j, word in enumerate(words)])
    return pieces, [i // 4 for i in range(count)]


def named(fires, pieces=None, groups=None):
    """Name a latent that fires if `fires(tokens, position)` is true."""
    given, given_groups = world()
    pieces, groups = pieces or given, groups or given_groups
    rows = [fires(tokens, j) for tokens in pieces for j in range(len(tokens))]
    (name,) = name_latents(pieces, sparse.csr_matrix(np.array(rows, dtype=float)[:, None]), groups)
    return name


def parts_of(name):
    return set(name.replace(" or ", ", ").split(", "))


@pytest.mark.parametrize(
    ("fires", "name"),
    [
        (lambda tokens, j: tokens[j] == " not", '"not"'),
        (lambda tokens, j: tokens[j].strip() in ("not", "sky", "people"), '"not", "sky" or "people"'),
        (lambda tokens, j: j > 0 and tokens[j - 1].strip().lower() == "the", 'after "the"'),
        (lambda tokens, j: tokens[j].strip() in {",", ".", "-"}, "punctuation"),
        (lambda tokens, j: tokens[j] == " ,", '","'),
        (lambda tokens, j: tokens[j].strip().isdigit(), "numbers"),
        (lambda tokens, j: tokens[j] == " CAN", '"can"'),
        (lambda tokens, j: tokens[j] == "\n", "line breaks"),
        (lambda tokens, j: True, "tokens of every kind"),
        (lambda tokens, j: j == 0, "the first word"),
    ],
)
def test_what_a_latent_fires_on_is_its_name(fires, name):
    found = named(fires)
    assert found and parts_of(found.name) == parts_of(name)
    assert (found.precision, found.recall, found.f1) == (1.0, 1.0, 1.0)


def test_precision_and_recall_by_hand():
    """In the scoring half, the latent fires on 8 of 12 tokens `not`, and on two other tokens."""
    pieces = [[" a", " not", " b", " c"]] * 24
    groups = [i // 2 for i in range(24)]
    fires = np.zeros((24, 4))
    fires[:, 1] = 1  # always on `not`
    fires[2:4, 1] = fires[6:8, 1] = 0  # but not in two of the six prompts of the half that scores
    fires[2:4, 3] = 1  # and once on `c` there
    (name,) = name_latents(pieces, sparse.csr_matrix(fires.reshape(-1, 1)), groups)
    assert name == Name('"not"', 8 / 12, 8 / 10, pytest.approx(16 / 22))


def test_a_name_that_holds_by_chance_scores_low():
    rng = np.random.default_rng(0)
    pieces = [[f" word{i}" for i in rng.integers(0, 60, 30)] for _ in range(60)]
    fires = sparse.random(60 * 30, 1, density=0.05, random_state=0, format="csr")
    (name,) = name_latents(pieces, fires, range(60))
    assert name.f1 < 0.25


def test_no_private_word_enters_a_name():
    """A latent that fires on a secret of one prompt is not named after it, even if it occurs there often."""
    pieces, groups = world()
    secret = [" my", " password", " is", " hunter2"] * 20
    pieces, groups = [*pieces, secret, secret], [*groups, 98, 98]
    name = named(lambda tokens, j: tokens[j] == " hunter2", pieces, groups)
    assert name is None or "hunter2" not in name.name
    of_many = [*pieces, *[[" hunter2", " said"]] * 12]
    name = named(lambda tokens, j: tokens[j] == " hunter2", of_many, [*groups, *range(100, 112)])
    assert "hunter2" in name.name, "what many say is no secret"


def test_a_private_word_in_many_pieces_counts_once_each_time():
    """A user name of five tokens in four prompts counted as twenty occurrences and became a name."""
    user = [" ask", " jo", "hn", "smi", "th", "42", " now"]
    fires = lambda tokens, j: tokens[j] in user[1:-1]  # noqa: E731
    for prompts, is_named in ((8, False), (10, True)):  # half of them are in the half that names are found on
        pieces, groups = [[" a", " b"]] * 40 + [user] * prompts, list(range(40 + prompts))
        assert ("johnsmith42" in named(fires, pieces, groups).name) == is_named


def test_the_one_word_of_many_responses_occurs_once_in_each():
    pieces, groups = [["Yes"]] * 12 + [["Maybe"]] * 12, list(range(24))
    assert named(lambda tokens, j: tokens[j] == "Yes", pieces, groups).name == '"yes"'


def test_no_long_word_enters_a_name_beside_a_short_one():
    """A key of 40 characters got into names through the next word: `"<key> b"` and `after "<key> b"`."""
    pieces = [[" is", " " + "x" * 40, " b", " c", " d"]] * 12 + [[" b", " c", " b", " d"]] * 12
    for place in range(5):
        fires = lambda tokens, j, place=place: len(tokens) == 5 and j == place  # noqa: E731
        name = named(fires, pieces, list(range(24)))
        assert name is not None and "xxx" not in name.name


def test_list_items_and_the_first_five_words_are_places():
    pieces = [[" Take", ":", "\n", "-", f" {a}", f" {b}", "\n", "-", f" {c}"] for a, b, c in ["abc", "def", "ghi"] * 8]
    name = named(lambda tokens, j: j in (4, 5, 8), pieces, list(range(24)))
    assert name == Name("list items", 1.0, 1.0, 1.0)


def test_the_same_input_gives_the_same_names():
    pieces, groups = world()
    fires = sparse.random(sum(map(len, pieces)), 20, density=0.2, random_state=1, format="csr")
    assert name_latents(pieces, fires, groups) == name_latents(pieces, fires, groups)


def test_pieces_are_joined_to_words_and_a_piece_is_marked_as_one():
    pieces = [[" un", "believ", "able", " dis", "able", " a"]] * 12
    groups = list(range(12))
    assert named(lambda tokens, j: j in (0, 1, 2), pieces, groups).name == '"unbelievable"'
    assert named(lambda tokens, j: tokens[j] == "able", pieces, groups).name == '"…able…"'


def test_what_never_fires_has_no_name():
    assert named(lambda tokens, j: False) is None
    pieces, groups = world()
    fires = sparse.csr_matrix((sum(map(len, pieces)), 3))
    assert name_latents(pieces, fires, groups) == [None, None, None]


def test_names_hold_nothing_that_cannot_be_printed():
    pieces = [[" \x1b[31m", "\ufffd", " " + "x" * 40, '"', " a"]] * 12
    for place in range(4):
        name = named(lambda tokens, j, place=place: j == place, pieces, list(range(12)))
        assert name is not None and name.name.isprintable() and "\ufffd" not in name.name and "xxx" not in name.name


def test_a_description_of_others_is_put_on_one_line():
    assert shorten_description("  two\nlines\x1b[31m\t") == "two lines [31m"
    assert len(shorten_description("word " * 100)) <= 80
