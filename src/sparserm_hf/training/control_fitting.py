"""training.control_fitting."""

from __future__ import annotations

import numpy as np

from ..evaluation import Control, RowName, activations, dense
from .directions import random_directions
from .fitting import HeadFitter
from .head import FittedHead


def fit_controls(fitter: HeadFitter) -> list[Control]:
    """Fit the controls of the reward model that a fitter makes.

    Random directions are made orthonormal where those of the reward model are. Where rewards must not follow styles,
    those of the controls must not either, but for length alone; the reward model as it would be otherwise is a
    control then.
    """
    args, selection = fitter.args, fitter.select()
    length = fitter.pairs.lengths[:, None].astype(np.float64)
    drawn = random_directions(fitter.decoder.shape[1], len(selection.latents), args.seed)
    random = fitter.make_directions(drawn).rows
    whole, projected = dense(fitter.texts), fitter.project(random)  # the same in each fold
    encoded = fitter.fit(lambda train: activations(fitter.texts, fitter.select(train).latents))
    controls = [
        Control(RowName.DENSE, fitter.fit(lambda _: whole).layers, "representation"),
        _on_directions(RowName.RANDOM, fitter.fit(lambda _: projected), random),
        Control(RowName.ACTIVATIONS, encoded.layers, "activations"),
    ]
    if args.debias_names:
        head = fitter.fit(fitter.read_selected, debias=False)
        controls.append(_on_directions(RowName.UNDEBIASED, head, fitter.directions(selection).rows))
    return [*controls, Control(RowName.LENGTH, fitter.fit(lambda _: length, debias=False).layers, "length")]


def _on_directions(name: str, head: FittedHead, directions: np.ndarray) -> Control:
    """A head on projections as one on representations, so that the directions (K, d_model) need not be kept."""
    (weight, bias), *rest = head.layers
    return Control(name, ((weight @ directions, bias), *rest), "representation")
