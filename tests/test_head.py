"""The head against slow, plain references and answers worked out by hand."""

import numpy as np
import pytest
import torch

from sparserm_hf.evaluation.metrics import pair_accuracy
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.training.config import L2_PENALTIES
from sparserm_hf.training.folds import FOLDS, group_folds, pairs_outside
from sparserm_hf.training.linear_head import fit_linear_head, fit_linear_path
from sparserm_hf.training.mlp_head import fit_mlp_head, pair_loss
from sparserm_hf.training.objective import Objective, PairFeatures
from sparserm_hf.training.selection import select_latents


def make_pairs(n=120, f=10, seed=0):
    """Pairs that a known direction separates, with noise, far-off means and very different scales."""
    rng = np.random.default_rng(seed)
    scale, mean = 10.0 ** rng.uniform(-2, 2, f), rng.normal(size=f) * 50
    w = rng.normal(size=f)
    chosen, rejected = rng.normal(size=(2, n, f))
    flip = (chosen - rejected) @ w + rng.normal(size=n) < 0
    chosen[flip], rejected[flip] = rejected[flip].copy(), chosen[flip].copy()
    return PairFeatures(chosen * scale + mean, rejected * scale + mean)


def standardised_loss(features, head, objective, l2):
    """The regularised loss of a head, computed the plain way; the penalty counts standardised weights."""
    chosen, rejected = (torch.from_numpy(head.rewards(x)) for x in (features.chosen, features.rejected))
    deviation = np.concatenate([features.chosen, features.rejected]).std(0)
    w = head.layers[0][0][0] * deviation
    return pair_loss(chosen, rejected, torch.from_numpy(objective.margins), objective).item() + l2 / 2 * w @ w


@pytest.mark.parametrize("loss", ["margin", "bradley_terry", "bce"])
@pytest.mark.parametrize("with_margins", [False, True])
def test_the_linear_head_is_fitted_to_convergence(loss, with_margins):
    """All three losses are convex: no step from the fitted head, large or small, may lower the loss."""
    features = make_pairs()
    margins = np.linspace(0, 0.5, 120) if with_margins else np.zeros(120)
    objective = Objective(loss, 1.0, margins)
    rng = np.random.default_rng(1)
    for l2, head in zip(L2_PENALTIES, fit_linear_path(features, objective, L2_PENALTIES), strict=True):
        best = standardised_loss(features, head, objective, l2)
        ((weight, bias),) = head.layers
        for size in (1e-3, 1e-2, 1e-1):
            for _ in range(20):
                step = 1 + size * rng.normal(size=weight.shape)
                moved = type(head)(((weight * step, bias),), None, None)
                if loss == "bce":  # the bias is fitted to a text's own reward: keep the mean where it was
                    shift = np.concatenate(
                        [head.rewards(f) - moved.rewards(f) for f in vars(features).values()]
                    ).mean()
                    moved = type(head)(((weight * step, bias + shift),), None, None)
                assert standardised_loss(features, moved, objective, l2) >= best - 1e-6


def test_the_margin_loss_on_one_dimension_by_hand():
    """Differences 1 and 1, threshold 1: mean(max(0, 1 - w)) + l2/2 w^2 has its minimum at w = min(1, 1/l2)."""
    features = PairFeatures(np.array([[1.0], [0.0]]), np.array([[0.0], [-1.0]]))
    objective = Objective("margin", 1.0, np.zeros(2))
    deviation = np.array([1.0, 0.0, 0.0, -1.0]).std()
    for l2, head in zip((4.0, 0.1), fit_linear_path(features, objective, (4.0, 0.1)), strict=True):
        d = 1 / deviation  # the standardised difference
        expected = min(1 / d, d / l2) / deviation
        np.testing.assert_allclose(head.layers[0][0], [[expected]], rtol=1e-5)
        rewards = np.concatenate([head.rewards(features.chosen), head.rewards(features.rejected)])
        np.testing.assert_allclose(rewards.mean(), 0.0, atol=1e-9)


def test_bradley_terry_agrees_with_gradient_descent_in_torch():
    features = make_pairs(seed=3)
    objective = Objective("bradley_terry", 1.0, np.full(120, 0.2))
    (head,) = fit_linear_path(features, objective, (0.1,))
    both = np.concatenate([features.chosen, features.rejected])
    d = torch.from_numpy((features.chosen - features.rejected) / both.std(0))
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    for _ in range(4000):
        loss = -torch.nn.functional.logsigmoid(d @ w - 0.2).mean() + 0.05 * w @ w
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 0.3 * gradient).detach().requires_grad_()
    np.testing.assert_allclose(head.layers[0][0][0] * both.std(0), w.detach(), atol=1e-5)


def test_a_constant_feature_gets_no_weight():
    features = make_pairs()
    features.chosen[:, 4] = features.rejected[:, 4] = 7.0
    for loss in ("margin", "bradley_terry", "bce"):
        (head,) = fit_linear_path(features, Objective(loss, 1.0, np.zeros(120)), (0.1,))
        assert head.layers[0][0][0, 4] == 0.0 and np.isfinite(head.layers[0][1]).all()


def test_cross_validation_selects_inside_each_fold_and_keeps_prompts_together():
    """Noise in as many dimensions as pairs: judged on pairs that it saw, any head would look perfect."""
    rng = np.random.default_rng(0)
    features = PairFeatures(rng.normal(size=(60, 400)), rng.normal(size=(60, 400)))
    groups = np.repeat(np.arange(20), 3)
    folds, seen = group_folds(groups, FOLDS, seed=0), []

    def features_for(fold):
        seen.append(set(groups[pairs_outside(folds, fold)]))
        return features

    head = fit_linear_head(features_for, Objective("margin", 1.0, np.zeros(60)), folds)
    assert 0.25 < head.validation_accuracy < 0.75
    assert [len(s) for s in seen] == [16] * 5 + [20], "each fold is selected without its held-out prompts"
    assert all(len(set(folds[groups == g])) == 1 for g in range(20))


@pytest.mark.parametrize("loss", ["margin", "bradley_terry", "bce"])
@pytest.mark.parametrize("groups", [[0, 1], [0, 0, 1], [0, 0]])
def test_two_pairs_are_enough_to_fit_to(loss, groups):
    """A fold with one pair once ended in a traceback out of the support vector machine."""
    features = make_pairs(n=len(groups))
    folds = group_folds(np.array(groups), FOLDS, seed=0)
    head = fit_linear_head(lambda _: features, Objective(loss, 1.0, np.zeros(len(groups))), folds)
    assert np.isfinite(head.rewards(features.chosen)).all()


def test_same_seed_same_bits():
    features, groups = make_pairs(), np.arange(120)
    for loss in ("margin", "bce"):
        objective = Objective(loss, 1.0, np.zeros(120))
        one, two = (fit_mlp_head(features, objective, groups, seed=5) for _ in range(2))
        other = fit_mlp_head(features, objective, groups, seed=6)
        assert all(
            np.array_equal(a, b)
            for x, y in zip(one.layers, two.layers, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        assert not np.array_equal(one.layers[0][0], other.layers[0][0])
        folds = group_folds(groups, FOLDS, seed=5)
        one, two = (fit_linear_head(lambda _: features, objective, folds) for _ in range(2))
        assert np.array_equal(one.layers[0][0], two.layers[0][0])


def test_the_mlp_learns_what_no_linear_head_can():
    """Chosen is whatever lies near the origin: the difference of means is zero."""
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(400, 2)) * 0.3, rng.normal(size=(400, 2)) * 3
    features, groups = PairFeatures(chosen, rejected), np.arange(400)
    objective = Objective("margin", 1.0, np.zeros(400))
    assert fit_mlp_head(features, objective, groups, seed=0).validation_accuracy > 0.85
    folds = group_folds(groups, FOLDS, seed=0)
    assert fit_linear_head(lambda _: features, objective, folds).validation_accuracy < 0.65


def test_ties_count_one_half():
    assert pair_accuracy(np.array([1.0, 0.0, -1.0, 0.0])) == 0.5


def test_selection_by_hand():
    """Of two pairs: latent 0 +1, 1 -1/2, 2 never fires, 3 +1/2, 4 0, 5 -1."""
    chosen, rejected = np.array([2, 0, 0, 1, 2, 0]), np.array([0, 1, 0, 0, 2, 2])
    selection = select_latents(chosen, rejected, 2, k=2)
    assert selection.latents.tolist() == [0, 3, 1, 5]
    assert selection.separations.tolist() == [1.0, 0.5, -0.5, -1.0]
    assert selection.sides == ["chosen", "chosen", "rejected", "rejected"]
    with pytest.raises(SparseRMError, match=r"5 of the SAE's 6 fire .* between 1 and 2"):
        select_latents(chosen, rejected, 2, k=3)


def test_among_equal_latents_the_smaller_id_comes_first():
    """Shares of chosen and rejected were once rounded before they were compared, and the rounding decided."""
    chosen, rejected = np.arange(1, 8), np.arange(7)  # +1 everywhere, at other shares
    assert select_latents(chosen, rejected, 7, k=2).latents.tolist() == [0, 1, 5, 6]
