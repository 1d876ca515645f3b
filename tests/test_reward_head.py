"""The method on vectors of one's own, against the trainer, plain references and answers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from scipy import sparse
from world import make_rows

from sparserm_hf import (
    PairIndices,
    RepresentedTexts,
    RewardHeadConfig,
    SparseRMError,
    SparseRMTrainer,
    SparseRMTrainingConfig,
    fit_reward_head,
)
from sparserm_hf.training.folds import FOLDS, group_folds, pairs_outside
from sparserm_hf.training.selection import FiringCounts, select_latents


def random_texts(pairs=60, d_model=12, d_sae=40, seed=0):
    """Pairs of random vectors whose latents fire at random; latent 5 fires on chosen, 9 on rejected texts."""
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(d_sae, d_model))
    activations = np.maximum(rng.normal(size=(2 * pairs, d_sae)) - 0.5, 0)
    activations[:pairs, 5], activations[pairs:, 5] = 1, 0
    activations[:pairs, 9], activations[pairs:, 9] = 0, 1
    texts = RepresentedTexts(activations @ decoder / d_sae, activations, decoder)
    return texts, PairIndices(np.arange(pairs), np.arange(pairs, 2 * pairs), np.arange(pairs) // 2)


def parts_of(fitted):
    """All numbers of a fitted head."""
    layers = [array for layer in fitted.head.layers for array in layer]
    return [fitted.selected.latents, fitted.projection.directions.rows, fitted.head.held_out_margins, *layers]


@pytest.mark.parametrize(
    "settings", [{}, {"k": 8}, {"head_type": "mlp"}, {"loss": "bce", "directions": "raw"}, {"loss": "bradley_terry"}]
)
def test_the_trainer_and_the_function_fit_the_same_head_to_the_bit(world, tmp_path, settings):
    args = SparseRMTrainingConfig(
        str(tmp_path / "out"), check_sae=False, controls=False, cache_dir=str(world / "cache"), **settings
    )
    trainer = SparseRMTrainer(str(world / "base"), str(world / "sae"), args, Dataset.from_list(make_rows(120)))
    trainer.train()
    cached = trainer.represent(trainer.train_pairs.texts)
    vectors = cached.read(lambda shard: shard.mean)
    activations = cached.read(lambda shard: shard.mean_activation.toarray())
    texts = RepresentedTexts(vectors, activations, trainer.sae.autoencoder.W_dec.double().numpy())
    chosen, rejected, groups = (np.array(getattr(trainer.train_pairs, x)) for x in ("chosen", "rejected", "groups"))
    fitted = fit_reward_head(texts, PairIndices(chosen, rejected, groups), RewardHeadConfig(**settings))
    assert fitted.selected.latents.tolist() == trainer.model.config.latent_ids
    assert fitted.head.validation_accuracy == trainer.metrics["validation_accuracy"]
    np.testing.assert_array_equal(
        fitted.projection.directions.rows.astype(np.float32), trainer.model.directions.numpy()
    )
    weights = [parameter.detach().numpy() for parameter in trainer.model.score.parameters()]
    arrays = [array for layer in fitted.head.layers for array in layer]
    for weight, array in zip(weights, arrays, strict=True):
        np.testing.assert_array_equal(weight, array.astype(np.float32))
    assert fitted.rewards(vectors).mean() == pytest.approx(trainer.model.config.reward_mean)


@pytest.mark.parametrize("config", [RewardHeadConfig(k=2), RewardHeadConfig(), RewardHeadConfig(k=2, head_type="mlp")])
def test_planted_latents_are_found_and_sparse_activations_count_as_dense_ones(config):
    texts, pairs = random_texts()
    fitted = fit_reward_head(texts, pairs, config)
    half = len(fitted.selected.latents) // 2
    assert fitted.selected.latents[0] == 5 and fitted.selected.latents[-1] == 9 and half == fitted.selected.k
    of_sparse = RepresentedTexts(texts.vectors, sparse.csr_matrix(texts.activations), texts.decoder)
    for one, other in zip(parts_of(fitted), parts_of(fit_reward_head(of_sparse, pairs, config)), strict=True):
        np.testing.assert_array_equal(one, other)
    some = np.array([3, 17])
    np.testing.assert_array_equal(of_sparse.activations_of(some), texts.activations_of(some))


def test_each_fold_selects_by_the_pairs_outside_it():
    """Counts of the folds are summed: they must be those of a count over the pairs themselves."""
    texts, pairs = random_texts()
    fold_of = group_folds(pairs.groups, FOLDS, seed=0)
    firing = FiringCounts.of(texts, pairs, fold_of)
    for fold in [None, *range(FOLDS)]:
        seen = pairs_outside(fold_of, fold)
        counts = [(texts.activations[side[seen]] > 0).sum(0) for side in (pairs.chosen, pairs.rejected)]
        plain, selection = select_latents(*counts, len(seen), 4), firing.select(4, fold)
        np.testing.assert_array_equal(selection.latents, plain.latents)
        np.testing.assert_array_equal(selection.separations, plain.separations)
    stabilities = firing.stabilities(4)
    assert stabilities[0] == stabilities[-1] == 1.0 and set(stabilities) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}


def test_margins_and_styles_change_the_fit():
    texts, pairs = random_texts()
    rng = np.random.default_rng(1)
    config = RewardHeadConfig(k=2, loss="bradley_terry")
    plain = fit_reward_head(texts, pairs, config).rewards(texts.vectors)
    zero, wide = (PairIndices(pairs.chosen, pairs.rejected, pairs.groups, m) for m in (np.zeros(len(pairs)), 2.0))
    np.testing.assert_array_equal(fit_reward_head(texts, zero, config).rewards(texts.vectors), plain)
    assert fit_reward_head(texts, wide, config).rewards(texts.vectors).std() > plain.std()
    styles = rng.normal(size=(len(pairs), 1))
    free = fit_reward_head(texts, replace(pairs, styles=styles), config)
    rewards = free.rewards(texts.vectors)
    margins = rewards[pairs.chosen] - rewards[pairs.rejected]
    assert abs(np.corrcoef(margins, styles[:, 0])[0, 1]) < 1e-8


def test_what_does_not_fit_together_is_said():
    texts, pairs = random_texts()
    with pytest.raises(SparseRMError, match=r"vectors have the shape \(120, 11\).*\(T, d_model\)"):
        RepresentedTexts(texts.vectors[:, 1:], texts.activations, texts.decoder)
    with pytest.raises(SparseRMError, match=r"vectors have the shape \(12,\)"):
        RepresentedTexts(texts.vectors[0], texts.activations, texts.decoder)
    with pytest.raises(SparseRMError, match="different lengths"):
        PairIndices(pairs.chosen, pairs.rejected[1:], pairs.groups)
    with pytest.raises(SparseRMError, match="at least 2 are needed"):
        PairIndices(pairs.chosen[:1], pairs.rejected[:1], pairs.groups[:1])
    with pytest.raises(SparseRMError, match="K = 30 asks for 60 latents, but the SAE has 40"):
        fit_reward_head(texts, pairs, RewardHeadConfig(k=30))
    with pytest.raises(SparseRMError, match="choose K up to 5"):
        fit_reward_head(texts, pairs, RewardHeadConfig(k=6))
    silent = RepresentedTexts(texts.vectors, np.zeros_like(texts.activations), texts.decoder)
    with pytest.raises(SparseRMError, match="K = 1 asks for 2 latents, but 0 of the SAE's 40 fire"):
        fit_reward_head(silent, pairs)
