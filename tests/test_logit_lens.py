"""Words for directions: through the final norm and the unembedding of the base model, before it is cut."""

import copy

import pytest
import torch
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_of
from tiny import tiny_causal_lm, tiny_tokenizer

from sparserm_hf.base_models.logit_lens import WORDS, LogitLens, distinct_words
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.reward_models import load_reward_model

KNOWN = {word.casefold() for word in tiny_tokenizer().get_vocab()}


def test_a_token_s_own_unembedding_promotes_it_and_its_opposite_suppresses_it():
    for architecture in ("llama", "gpt2", "gpt_neox"):
        model, tokenizer = tiny_causal_lm(architecture), tiny_tokenizer()
        lens = LogitLens(model)
        rows = model.get_output_embeddings().weight[[20, 33]].detach()
        expected = [tokenizer.decode([token]) for token in (20, 33)]
        cut_base_model(model, 2)
        promoted, suppressed = lens.words(torch.cat([rows, -rows]) * 0.01, tokenizer, KNOWN)
        assert [words[0] for words in promoted[:2]] == expected, architecture
        assert [words[0] for words in suppressed[2:]] == expected, architecture
        assert all(len(words) == WORDS for words in promoted + suppressed)


def test_a_bias_of_the_final_norm_says_nothing_of_a_direction():
    model = tiny_causal_lm("gpt2")
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    before = LogitLens(model).words(direction, tiny_tokenizer(), KNOWN)
    with torch.no_grad():
        decoder_of(model).ln_f.bias.normal_(std=10.0)
    assert LogitLens(model).words(direction, tiny_tokenizer(), KNOWN) == before


def test_a_base_model_without_an_unembedding_gives_no_words():
    assert LogitLens(decoder_of(tiny_causal_lm())).words(torch.ones(1, 32), tiny_tokenizer(), KNOWN) == ([], [])


def test_an_architecture_that_cannot_be_cut_gets_one_sentence():
    model = tiny_causal_lm()
    model.model.other_norm = copy.deepcopy(model.model.norm)
    with pytest.raises(SparseRMError, match="not an architecture that SparseRM can cut"):
        LogitLens(model)


def test_variants_of_a_word_count_once_and_pieces_of_words_not_at_all():
    class Tokenizer:
        def decode(self, ids):
            return [" yes", "Yes", "yes", " \n", "\ufffd", "irmingham", "no", "\t"][ids[0]]

    assert distinct_words(Tokenizer(), range(8), {"yes", "no", "birmingham"}) == ["yes", "no"]


def test_training_keeps_the_words_with_the_model(trained):
    config = load_reward_model(str(trained), torch.device("cpu"))[0].config
    assert all(latent.promotes and latent.suppresses for latent in config.latents)
    assert all(word.startswith(("w", "<")) for latent in config.latents for word in latent.promotes)
    card = (trained / "README.md").read_text()
    assert f"| {config.latents[0].id} | " in card and config.latents[0].title.replace("|", r"\|") in card
