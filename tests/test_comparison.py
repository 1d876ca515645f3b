"""Two reward models side by side: classifiers made by hand, whose rewards are known, and trained SparseRMs."""

import numpy as np
import pytest
import torch
from tiny import tiny_causal_lm, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from world import train_arguments

from sparserm_hf import SparseRMError, compare, evaluate, export_stock, load_preferences
from sparserm_hf.cli.main import main
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.scoring import ClassifierRewardModel

D_MODEL, LARGEST = 32, 100
# It ends with the response, so that a classifier pools the response's last word.
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"


def last_word_classifier(folder, reward_of, most=128):
    """Write a classifier whose reward of a text is `reward_of(i)` if the last word is `w<i>`, from -100 to 100."""
    words = ["<pad>", "[user]", "[assistant]", "<unk>", *(f"w{i}" for i in range(60))]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", chat_template=TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=D_MODEL, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8,
        num_labels=1, pad_token_id=0, max_position_embeddings=most, rms_norm_eps=0.0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()  # the layer adds nothing to the embedding
        for i in range(60):  # each embedding has the norm 1, its first number is the reward
            share = reward_of(i) / LARGEST
            model.model.embed_tokens.weight[ids[f"w{i}"], :2] = torch.tensor([share, (1 - share**2) ** 0.5])
        model.model.embed_tokens.weight[:4, 1] = 1.0
        model.score.weight[0, 0] = LARGEST / D_MODEL**0.5  # the final norm multiplies by the root of d_model
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def pair(chosen, rejected, prompt="w50"):
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": [{"role": "user", "content": prompt}]} | {
        name: [{"role": "assistant", "content": text}] for name, text in sides.items()
    }


@pytest.fixture
def by_number(tmp_path):
    """A classifier whose reward is the number of the last word."""
    return last_word_classifier(tmp_path / "by-number", lambda i: i)


@pytest.fixture(scope="module")
def last_token(world):
    """A SparseRM that has a stock form."""
    options = {"pooling": "last", "head_type": "linear", "representation_norm": "rms"}
    assert main(train_arguments(world, world / "last-token", **options)) == 0
    return str(world / "last-token")


@pytest.fixture
def test_pairs(world):
    return load_preferences(str(world / "test.jsonl"))


# Known rewards. The first model follows the number of the last word, the second prefers even numbers by as much.

ROWS = [
    pair("w1 w9", "w5"),  # longer; margins 4 and 5 - 9 = -4, both being odd
    pair("w8", "w7 w3"),  # shorter; 5 and 8 + 3 = 11
    pair("w2", "w6"),  # as long; -4 and 2 - 6 = -4
    pair("w4", "w1"),  # as long; 3 and 4 + 1 = 5
    pair("w3 w10", "w12"),  # longer; -2 and -2
    pair("w10", "w40 w11"),  # shorter; -1 and 10 + 11 = 21
]


@pytest.fixture
def known(by_number, tmp_path):
    evens = last_word_classifier(tmp_path / "evens", lambda i: -i if i % 2 else i)
    return compare(by_number, evens, ROWS)


def test_the_margins_are_those_of_each_model(known, by_number):
    np.testing.assert_allclose(known.margins, [[4, 5, -4, 3, -2, -1], [-4, 11, -4, 5, -2, 21]], atol=1e-4)
    assert known.names[0] == by_number and known.pairs == 6 and known.left_out == 0
    assert [metrics.accuracy for metrics in known.metrics] == [0.5, 0.5]
    assert known.correlation == pytest.approx(np.corrcoef([4, 5, -4, 3, -2, -1], [-4, 11, -4, 5, -2, 21])[0, 1])


def test_the_difference_is_paired(known):
    """The models differ on the first pair (+1) and the last (-1): mean 0, variance 2 / 5, t(0.975, 5) = 2.5706."""
    assert known.difference.mean == 0
    assert known.difference.half == pytest.approx(2.5706 * (2 / 5 / 6) ** 0.5, abs=1e-4)


def test_pairs_are_told_apart_by_length(known):
    found = {kind: pairs.tolist() for kind, pairs in known.by_length.items()}
    assert found == {"shorter chosen": [1, 5], "equally long": [2, 3], "longer chosen": [0, 4]}


def test_the_strongest_disagreement_comes_first(known):
    """In standard deviations: 4 / 3.44 + 4 / 8.85 on row 1, 1 / 3.44 + 21 / 8.85 on row 6."""
    assert known.disagreeing.tolist() == [5, 0]
    last, first = known.disagreements
    assert (last.row, last.prompt, last.chosen, last.rejected) == (6, "w50", "w10", "w40 w11")
    assert first.row == 1 and first.margins == pytest.approx((4, -4), abs=1e-4)
    spreads = np.std([4, 5, -4, 3, -2, -1]), np.std([-4, 11, -4, 5, -2, 21])
    assert last.deviations == pytest.approx((-1 / spreads[0], 21 / spreads[1]), abs=1e-4)
    assert last.explanations == first.explanations == (None, None)


def test_its_repr_says_what_it_found(known):
    assert "Comparison on 6 pairs" in repr(known) and "50.0% (18.8 to 81.2)" in repr(known)
    assert "+0.0 (-66.4 to +66.4) points" in repr(known) and "disagree on 2 pairs" in repr(known)


def test_a_tie_is_no_disagreement(by_number, tmp_path):
    constant = last_word_classifier(tmp_path / "constant", lambda i: 7)
    found = compare(by_number, constant, ROWS)
    assert found.metrics[1].accuracy == 0.5 and found.disagreements == () and found.correlation == 0
    assert found.difference.mean == 0 and found.difference.half == pytest.approx(2.5706 * (0.3 / 6) ** 0.5, abs=1e-4)


def test_what_one_model_cannot_use_is_left_out_for_both(by_number, tmp_path):
    """The rows are numbered as in the data, whatever is left out before them."""
    short = last_word_classifier(tmp_path / "short", lambda i: -i, most=10)
    rows = [pair("w1", ""), pair("w2 " * 9, "w3"), pair("w5", "w4")]
    found = compare(by_number, short, iter(rows))
    assert found.left_out == 2 and found.margins.round(3).tolist() == [[1], [-1]]
    assert [one.row for one in found.disagreements] == found.rows.tolist() == [3]


def test_two_models_that_share_no_usable_pair_are_refused(trained, tmp_path):
    """The first row is too long for the one; of the second, the other knows no word."""
    wide = last_word_classifier(tmp_path / "wide", lambda i: i, most=512)
    with pytest.raises(SparseRMError, match="No pair is usable for both"):
        compare(str(trained), wide, [pair("w2 " * 200, "w3"), pair("w80", "w81")])


def test_strings_are_scored_as_they_stand(by_number):
    found = compare(by_number, by_number, [{"prompt": "w3 ", "chosen": "w9", "rejected": "w1"}])
    assert found.margins.round(3).tolist() == [[8], [8]]


# SparseRM.


def test_a_model_against_itself_differs_nowhere(trained, test_pairs):
    found, alone = compare(str(trained), str(trained), test_pairs), evaluate(str(trained), test_pairs)
    assert found.metrics == (alone.reward_model, alone.reward_model)
    assert (found.difference.mean, found.difference.half) == (0, None) and found.correlation == pytest.approx(1)
    assert found.disagreements == () and not len(found.disagreeing)
    lengths = {kind: pairs.tolist() for kind, pairs in alone.by_length.items()}
    assert {kind: pairs.tolist() for kind, pairs in found.by_length.items()} == lengths


def test_the_stock_form_of_a_model_agrees_with_it(last_token, test_pairs, tmp_path):
    export_stock(last_token, tmp_path / "stock")
    found = compare(last_token, str(tmp_path / "stock"), test_pairs)
    np.testing.assert_allclose(*found.margins, atol=1e-4)
    assert found.disagreements == ()


def test_disagreements_are_explained_by_the_latents_of_a_sparserm(trained, by_number, test_pairs):
    found = compare(str(trained), by_number, test_pairs, examples=4)
    numbers = [[int(row[side][0]["content"].split()[-1][1:]) for side in ("chosen", "rejected")] for row in test_pairs]
    np.testing.assert_allclose(found.margins[1], -np.diff(numbers)[:, 0], atol=1e-4)
    assert len(found.disagreements) == 4
    for one in found.disagreements:
        explained, nothing = one.explanations
        assert nothing is None and one.margins[0] * one.margins[1] < 0
        assert explained.margin == pytest.approx(one.margins[0], abs=1e-4)
        assert test_pairs[one.row - 1]["chosen"][0]["content"] == one.chosen
        largest = explained.latents[0][2]
        assert all(abs(difference) <= abs(largest) for *_, difference in explained.latents)


def test_the_command_prints_both_on_80_columns(trained, by_number, world, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pairs = str(world / "test.jsonl")
    assert main(["evaluate", str(trained), pairs, "--against", by_number]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    printed = " ".join(" ".join(lines).split())
    found = compare(str(trained), by_number, load_preferences(pairs))
    assert f"{100 * found.metrics[0].accuracy:.1f}" in printed and f"{100 * found.difference.mean:+.1f}" in printed
    assert f"The models prefer different responses on {len(found.disagreeing)} of 60 pairs." in printed
    assert printed.count("no explanation: not a SparseRM") == len(found.disagreements) == 5
    strongest = found.disagreements[0]
    (effect, _, difference), *_ = strongest.explanations[0].latents
    assert f"Row {strongest.row} prompt: {strongest.prompt} chosen: {strongest.chosen}" in printed
    assert f"{difference:+.3f}" in printed and f"(latent {effect.latent})" in printed


# Bad input.


def classifier(folder, labels):
    """Write a random model: a causal language model, or a classifier with some labels."""
    model = tiny_causal_lm()
    if labels:
        model.save_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    model.save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder)
    return str(folder)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (0, "is no trained reward model, as its weights lack score.weight"),
        (2, "score.weight is not for one label"),
    ],
)
def test_a_model_that_gives_no_single_reward_is_refused(labels, told, trained, world, tmp_path, capsys):
    against = classifier(tmp_path / "other", labels)
    assert main(["evaluate", str(trained), str(world / "test.jsonl"), "--against", against]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"sparserm: error: '{against}'") and told in error
    assert "name a sequence classifier with one label" in error


def test_a_classifier_without_a_chat_template_is_refused(tmp_path):
    folder = classifier(tmp_path / "other", 1)
    save_tokenizer(tiny_tokenizer(chat_template=None), tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(SparseRMError, match="has no chat template"):
        ClassifierRewardModel.load(folder, torch.device("cpu"))


def test_a_missing_model_is_refused_by_name(trained, test_pairs):
    with pytest.raises(SparseRMError, match="The reward model 'no-such-model' cannot be loaded"):
        compare(str(trained), "no-such-model", test_pairs)


def test_a_reward_that_is_not_finite_is_refused(by_number, tmp_path):
    huge = tmp_path / "huge"
    last_word_classifier(huge, lambda i: i)
    model = LlamaForSequenceClassification.from_pretrained(huge)
    model.score.weight.data[:] = float("inf")
    model.save_pretrained(huge)
    with pytest.raises(SparseRMError, match="Row 1 has a reward that is not finite"):
        compare(by_number, str(huge), ROWS)


def test_a_benchmark_is_for_one_model(trained, by_number, capsys):
    assert main(["evaluate", str(trained), "--benchmark", "rm-bench", "--against", by_number]) == 2
    assert "leave out --benchmark or --against" in capsys.readouterr().err
