"""A world in which one word decides and another merely goes with length: what is planted is found, and corrected."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from tiny import D_MODEL, tiny_causal_lm, tiny_encoder, tiny_tokenizer
from world import make_rows, save_sae, train_arguments

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, explain
from sparserm_hf.cli.main import main
from sparserm_hf.conversations.response_styles import measure_styles
from sparserm_hf.conversations.tokenized_preferences import tokenize_preferences
from sparserm_hf.training.linear_head import fit_linear_path
from sparserm_hf.training.mlp_head import fit_mlp_head
from sparserm_hf.training.objective import Objective, PairFeatures

GOOD, FILLER, BAD = 0, 1, 2  # numbers of words, and of the latents that fire on them
WORDS = range(3, 12)  # that say nothing


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A base model whose residual stream is the word itself, and an SAE with a latent for each word."""
    causal_lm, tokenizer = tiny_causal_lm(), tiny_tokenizer()
    with torch.no_grad():
        for layer in causal_lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        causal_lm.model.embed_tokens.weight.zero_()
        for word in range(12):
            causal_lm.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids(f"w{word}"), word] = 4.0
    sae = SparseAutoencoder(D_MODEL, D_MODEL)
    sae.W_enc, sae.W_dec = torch.eye(D_MODEL), torch.eye(D_MODEL)
    return causal_lm, tokenizer, save_sae(tmp_path_factory.mktemp("planted") / "sae", sae=sae)


def rows(count, seed):
    """The chosen response is good, its rival bad, but for one pair in five; it is the longer one in three of four."""
    rng = np.random.default_rng(seed)

    def response(word, fillers):
        words = [word] * 2 + [FILLER] * fillers + rng.choice(WORDS, 4).tolist()
        return [{"role": "assistant", "content": " ".join(f"w{w}" for w in rng.permutation(words))}]

    found = []
    for _ in range(count):
        fillers = [int(rng.integers(3, 6)), int(rng.integers(0, 3))]
        if rng.random() < 0.25:
            fillers.reverse()
        words = rng.choice(WORDS, 2).tolist() if rng.random() < 0.2 else [GOOD, BAD]
        sides = [response(word, filler) for word, filler in zip(words, fillers, strict=True)]
        prompt = [{"role": "user", "content": " ".join(f"w{w}" for w in rng.choice(WORDS, 3))}]
        found.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return found


def train(planted, folder, **settings):
    causal_lm, tokenizer, sae = planted
    args = SparseRMTrainingConfig(
        str(folder), k=2, representation_norm="none", check_sae=False, cache_dir=str(folder) + "-cache", **settings
    )
    data = (Dataset.from_list(rows(400, seed)) for seed in (0, 1))
    trainer = SparseRMTrainer(causal_lm, sae, args, *data, processing_class=tokenizer)
    trainer.train()
    return trainer


def weights(model):
    return dict(zip(model.config.latent_ids, model.score.weight[0].tolist(), strict=True))


@pytest.mark.parametrize("loss", ["margin", "bradley_terry", "bce"])
def test_what_merely_goes_with_length_loses_its_weight_and_what_decides_keeps_it(planted, tmp_path, loss):
    biased = train(planted, tmp_path / "biased", loss=loss)
    fair = train(planted, tmp_path / "fair", loss=loss, debias="length")
    biased_share, fair_share = (abs(w[FILLER] / w[GOOD]) for w in (weights(biased.model), weights(fair.model)))
    assert biased_share > 0.25 and fair_share < 0.1
    before, after = biased.evaluation, fair.evaluation
    assert before.style_correlations("SparseRM")["tokens"] > 0.4
    assert abs(after.style_correlations("SparseRM")["tokens"]) < 0.15
    np.testing.assert_allclose(after.margins["without debiasing"], before.margins["SparseRM"], atol=1e-3)
    of_shorter, of_longer = (e.metrics_by_length("SparseRM")["shorter chosen"].accuracy for e in (before, after))
    assert of_longer >= of_shorter
    assert after.style_correlations("dense representation")["tokens"] == pytest.approx(0, abs=0.15)
    assert abs(after.style_correlations("length alone")["tokens"]) > 0.9


def test_steering_does_by_hand_what_debiasing_does_and_the_explanation_shows_what_was_planted(planted, tmp_path):
    trainer = train(planted, tmp_path / "biased")
    model, tokenizer = trainer.model, trainer.processing_class

    def explained(words):
        content = " ".join(f"w{word}" for word in words)
        messages = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": content}]
        return explain(model, tokenizer, messages)

    explanation = explained([GOOD, GOOD, 4, 5])
    assert explanation.latents[0].latent == GOOD
    assert all(effect.as_stated for effect in explanation.latents)
    parts = {effect.latent: effect.tokens for effect in explanation.latents}
    assert min(parts[GOOD][:2]) > max(parts[GOOD][2:])  # by the tokens that carry it
    # Another word for a filler: the same length, so that nothing else changes.
    assert explained([GOOD, 4, FILLER]).reward > explained([GOOD, 4, 5]).reward + 0.03
    model.steer({FILLER: 0.0})
    # Not to the last digit: the direction is orthogonal to the average token, which has a part of the filler's.
    assert explained([GOOD, 4, FILLER]).reward == pytest.approx(explained([GOOD, 4, 5]).reward, abs=1e-3)


@pytest.mark.parametrize("loss", ["margin", "bradley_terry", "bce"])
def test_reward_differences_are_uncorrelated_with_styles_to_the_last_digit(loss):
    rng = np.random.default_rng(0)
    styles = rng.normal(size=(200, 3))
    styles[:, 2] = 0.0  # a style that is not to be seen
    differences = rng.normal(size=(200, 8)) + styles[:, :2] @ rng.normal(size=(2, 8)) + 0.3
    features = PairFeatures(differences + 5, np.zeros((200, 8)) + 5 + 0.1 * rng.normal(size=(200, 8)))
    objective = Objective(loss, 1.0, np.zeros(200), styles)
    (head,) = fit_linear_path(features, objective, (0.1,))
    margins = head.rewards(features.chosen) - head.rewards(features.rejected)
    assert margins.std() > 0.1
    for style in styles[:, :2].T:
        assert abs(np.corrcoef(margins, style)[0, 1]) < 1e-8


def test_an_mlp_reads_features_that_do_not_follow_the_styles():
    rng = np.random.default_rng(0)
    styles = rng.normal(size=(300, 1))
    chosen = np.concatenate([rng.normal(size=(300, 1)) + 1, styles], axis=1)
    features = PairFeatures(chosen, rng.normal(size=(300, 2)) * [1.0, 0.1])
    head = fit_mlp_head(features, Objective("margin", 1.0, np.zeros(300), styles), np.arange(300), 0)
    margins = head.rewards(features.chosen) - head.rewards(features.rejected)
    assert abs(np.corrcoef(margins, styles[:, 0])[0, 1]) < 0.2


def test_styles_are_counted_in_the_response_alone():
    tokenizer = tiny_tokenizer()
    pairs = tokenize_preferences(make_rows(3), tiny_encoder(tokenizer))
    counts = measure_styles(pairs, tokenizer)
    assert counts["tokens"].tolist() == [[8, 8]] * 3

    class Decoder:
        def batch_decode(self, texts, skip_special_tokens):
            formatted, plain = "# Title\n- **one** item\n2. two\n\n* three", "a * b - c, 3.5 and snake__case"
            return [formatted, *[plain] * (len(texts) - 1)]

    counts = measure_styles(pairs, Decoder())
    assert [counts[name][0, 0] for name in ("headers", "list items", "bold")] == [1, 3, 1]
    assert not any(counts[name][1].any() for name in ("headers", "list items", "bold"))


def test_the_command_says_before_and_after_and_refuses_what_it_does_not_know(world, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    arguments = train_arguments(world, tmp_path / "out", eval_dataset=world / "test.jsonl", debias="length,format")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "without debiasing" in printed and "equally long" in printed
    assert "its difference is the same in every pair" in caplog.text  # every response is as long
    assert main(train_arguments(world, tmp_path / "out", debias="tone")) == 2
    assert "debias names 'tone', but may name length, format" in capsys.readouterr().err
