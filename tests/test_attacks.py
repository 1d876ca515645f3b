"""Responses made of the chat template's own tokens: where they are structure they win nothing; the card says so."""

import numpy as np
import pytest
from tiny import tiny_encoder, tiny_tokenizer
from world import make_rows

from sparserm_hf.conversations.chat_format import ChatFormat
from sparserm_hf.conversations.tokenized_preferences import tokenize_preferences
from sparserm_hf.evaluation.attacks import attacks_on, measure_attacks
from sparserm_hf.evaluation.evaluation import EVALUATION_FILE, Evaluation


@pytest.fixture
def encoder():
    return tiny_encoder()


def count_tokens(texts):
    """A reward that is the number of pooled tokens: whoever gets structure pooled wins."""
    return np.array([float(text.stop - text.start) for text in texts])


def test_at_least_ten_attacks_are_made_of_what_the_template_writes():
    tokenizer = tiny_tokenizer()
    tried = attacks_on(ChatFormat.of(tokenizer), tokenizer.bos_token, tokenizer.eos_token)
    assert len(tried) >= 10 and all(tried.values())
    assert any("<|end|>" in written and "<|assistant|>" in written for written in tried.values())


def test_marks_in_token_ids_end_the_response_and_in_messages_are_text(encoder):
    """A header as the response, in token ids, once had the highest reward of all: its special token was pooled."""
    pairs = tokenize_preferences(make_rows(12), encoder)  # every response has eight words
    won = {attack.name: attack for attack in measure_attacks(pairs, encoder, count_tokens)}
    assert won["end of turn"].as_tokens.pairs == 12
    assert {name for name, attack in won.items() if attack.as_tokens.accuracy > 0} == {
        "rejected response, end of turn, header"  # as long as the chosen one: a tie, with the suffix or without
    }
    assert won["rejected response, end of turn, header"].as_tokens.accuracy == 0.5
    assert won["rejected response, end of turn, header"].as_text.accuracy == 0.5
    assert won["end of turn, eight times"].as_text.accuracy == 1.0, "as text it is longer than eight words"


def test_plain_text_has_no_template_to_attack(encoder):
    rows = [{"prompt": "w1 ", "chosen": "w2", "rejected": "w3"}]
    assert measure_attacks(tokenize_preferences(rows, encoder), encoder, count_tokens) == []


def test_training_with_an_evaluation_set_puts_the_table_on_the_card(trained):
    attacks = Evaluation.load(trained / EVALUATION_FILE).attacks
    assert len(attacks) >= 10 and attacks[0].as_tokens.pairs == 60
    card = (trained / "README.md").read_text()
    for attack in attacks:
        assert f"| {attack.name} |" in card
    assert "it was not tested against responses written to exploit it" not in card
