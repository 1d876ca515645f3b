"""training.mlp_head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..evaluation import pair_accuracy
from ..runtime import SparseRMError, as_numpy
from .head import FOLDS, FittedHead, Objective, PairFeatures, _standardization, _style_basis, _without, group_folds


def fit_mlp_head(
    features: PairFeatures,
    objective: Objective,
    groups: np.ndarray,
    seed: int,
    hidden_size: int = 512,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    batch_size: int = 64,
    max_epochs: int = 100,
    patience: int = 10,
) -> FittedHead:
    """Fit an MLP with one hidden layer by AdamW, stopped early on a fifth of the prompts that it does not train on.

    Args:
        features: (N, F) raw features of the pairs.
        objective: Loss and margins.
        groups: (N,) number of each pair's prompt.
        seed: For the weights, the order of the batches and the held-out prompts.
        hidden_size: Width of the hidden layer.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        batch_size: Pairs a step.
        max_epochs: Most passes over the pairs.
        patience: Passes without a better held-out loss before it stops.

    Raises:
        SparseRMError: All pairs have the same prompt, so that none can be held out.
    """
    fold_of = group_folds(groups, FOLDS, seed)
    train, held_out = np.flatnonzero(fold_of != 0), np.flatnonzero(fold_of == 0)
    if not len(train):
        raise SparseRMError(
            "The MLP head holds some prompts out to know when to stop, but all pairs share one prompt."
        )
    mean, deviation = _standardization(features.rows(train))
    standardised = (np.stack([features.chosen, features.rejected]) - mean) / deviation  # (2, N, F)
    styles = objective.rows(train).styles
    basis = _style_basis(standardised[0, train] - standardised[1, train], styles)
    x = torch.from_numpy(_without(standardised, basis)).float()
    margins = torch.from_numpy(objective.margins).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[-1], hidden_size), torch.nn.ReLU(), torch.nn.Linear(hidden_size, 1)
        )
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=weight_decay)

    def loss_of(index: torch.Tensor | np.ndarray) -> torch.Tensor:
        rewards = net(x[:, index])[..., 0]  # (2, n)
        return pair_loss(rewards[0], rewards[1], margins[index], objective)

    best, best_loss, waited = {}, float("inf"), 0
    for _ in range(max_epochs):
        for step in torch.from_numpy(train)[torch.randperm(len(train), generator=generator)].split(batch_size):
            optimizer.zero_grad()
            loss_of(step).backward()
            optimizer.step()
        with torch.no_grad():
            held_out_loss = loss_of(held_out).item()
        waited += 1
        if held_out_loss < best_loss:
            best, best_loss, waited = {k: v.clone() for k, v in net.state_dict().items()}, held_out_loss, 0
        if waited >= patience:
            break
    weights = {name: as_numpy(value) for name, value in best.items()}
    first = _without(weights["0.weight"], basis) / deviation
    layers = ((first, weights["0.bias"] - first @ mean), (weights["2.weight"], weights["2.bias"]))
    head = FittedHead(layers, None, None)
    test = features.rows(held_out)
    held_out_margins = head.rewards(test.chosen) - head.rewards(test.rejected)
    accuracy = pair_accuracy(held_out_margins)
    return replace(head, validation_accuracy=accuracy, held_out_margins=held_out_margins)


def pair_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor, objective: Objective
) -> torch.Tensor:
    """Mean loss of rewards (n,) and (n,), see `Objective`."""
    if objective.loss == "margin":
        return torch.relu(objective.gamma + margins - (chosen - rejected)).mean()
    if objective.loss == "bradley_terry":
        return -torch.nn.functional.logsigmoid(chosen - rejected - margins).mean()
    return -torch.nn.functional.logsigmoid(torch.cat([chosen, -rejected])).mean()
