"""Fit an MLP reward head by gradient descent, stopped early on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ..evaluation import pair_accuracy
from ..runtime import SparseRMError, as_numpy
from .folds import FOLDS, group_folds, pairs_outside
from .objective import FittedHead, Objective, PairFeatures, standardization, style_basis, without_basis

HIDDEN_SIZE = 512  # as in the paper
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1  # of AdamW
BATCH_SIZE = 64  # pairs
MAX_EPOCHS = 100
PATIENCE = 10  # epochs without a lower held-out loss before training stops


def fit_mlp_head(features: PairFeatures, objective: Objective, groups: np.ndarray, seed: int) -> FittedHead:
    """Fit an MLP with one hidden layer by AdamW, stopped early on a fifth of the prompts.

    Args:
        features: (N, F) raw features of the pairs.
        objective: Objective on the N pairs.
        groups: (N,) number of each pair's prompt.
        seed: Seed of the weights, of the order of the batches and of the held-out prompts.

    Raises:
        SparseRMError: All pairs have the same prompt, so that none can be held out.
    """
    fold_of = group_folds(groups, FOLDS, seed)
    train, held_out = pairs_outside(fold_of, 0), np.flatnonzero(fold_of == 0)
    if not len(train):
        raise SparseRMError(
            "The MLP head needs held-out prompts to stop its training, but all pairs have the same prompt: add other "
            "prompts, or use the linear head."
        )
    mean, deviation = standardization(features.rows(train))
    standardised = (np.stack([features.chosen, features.rejected]) - mean) / deviation  # (2, N, F)
    basis = style_basis(standardised[0, train] - standardised[1, train], objective.rows(train).styles)
    x = torch.from_numpy(without_basis(standardised, basis)).float()
    margins = torch.from_numpy(objective.margins).float()
    net = _make_network(x.shape[-1], seed)

    def loss_of(index: torch.Tensor) -> torch.Tensor:
        rewards = net(x[:, index])[..., 0]  # (2, n)
        return pair_loss(rewards[0], rewards[1], margins[index], objective)

    weights = _train(net, loss_of, torch.from_numpy(train), torch.from_numpy(held_out), seed)
    first = without_basis(weights["0.weight"], basis) / deviation
    layers = ((first, weights["0.bias"] - first @ mean), (weights["2.weight"], weights["2.bias"]))
    head = FittedHead(layers, None, None)
    test = features.rows(held_out)
    held_out_margins = head.rewards(test.chosen) - head.rewards(test.rejected)
    return replace(head, validation_accuracy=pair_accuracy(held_out_margins), held_out_margins=held_out_margins)


def _make_network(features: int, seed: int) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(features, HIDDEN_SIZE), torch.nn.ReLU(), torch.nn.Linear(HIDDEN_SIZE, 1)
        )


def _train(
    net: torch.nn.Sequential,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    train: torch.Tensor,
    held_out: torch.Tensor,
    seed: int,
) -> dict[str, np.ndarray]:
    """Train until the held-out loss stops falling.

    Args:
        net: The network; it is trained in place.
        loss_of: Takes positions of pairs and computes their mean loss.
        train: Positions of the training pairs.
        held_out: Positions of the held-out pairs.
        seed: Seed of the order of the batches.

    Returns:
        The weights of the epoch with the lowest held-out loss, by name.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_loss, waited = {}, float("inf"), 0
    for _ in range(MAX_EPOCHS):
        for batch in train[torch.randperm(len(train), generator=generator)].split(BATCH_SIZE):
            optimizer.zero_grad()
            loss_of(batch).backward()
            optimizer.step()
        with torch.no_grad():
            held_out_loss = loss_of(held_out).item()
        waited += 1
        if held_out_loss < best_loss:
            best, best_loss, waited = {k: v.clone() for k, v in net.state_dict().items()}, held_out_loss, 0
        if waited >= PATIENCE:
            break
    return {name: as_numpy(value) for name, value in best.items()}


def pair_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor, objective: Objective
) -> torch.Tensor:
    """Compute the mean loss over n pairs, see `Objective`.

    Args:
        chosen: (n,) rewards of the chosen responses.
        rejected: (n,) rewards of the rejected responses.
        margins: (n,) margins of the pairs.
        objective: The loss and its gamma; the objective's own margins are not used.
    """
    if objective.loss == "margin":
        return torch.relu(objective.gamma + margins - (chosen - rejected)).mean()
    if objective.loss == "bradley_terry":
        return -torch.nn.functional.logsigmoid(chosen - rejected - margins).mean()
    return -torch.nn.functional.logsigmoid(torch.cat([chosen, -rejected])).mean()
