"""The controls that every result is shown beside: the same head on something simpler than selected features."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..features import FEATURES, read_features
from ..head import FittedHead
from ..representations import Representations
from ..selection import Selection

CONTROLS_FILE = "controls.safetensors"
NO_DIRECTIONS = np.zeros((0, 0))


@dataclass(frozen=True)
class Control:
    """A fitted control.

    Attributes:
        name: What it is called in tables.
        head: The fitted head.
        poolings: The representations that the head reads, side by side: `mean`, `last`.
        latents: Latents whose activations it reads.
        readings: What it reads of each of them.
        length: Whether it reads the number of tokens.
    """

    name: str
    head: FittedHead
    poolings: list[str] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)
    readings: list[str] = field(default_factory=list)
    length: bool = False

    def rewards(self, texts: Representations, lengths: np.ndarray) -> np.ndarray:
        """(N,) rewards of texts with their (N,) lengths in tokens."""
        if self.length:
            return self.head.rewards(lengths[:, None].astype(np.float64))
        if self.poolings:
            return self.head.rewards(dense(texts, self.poolings))
        return self.head.rewards(read_features(texts, NO_DIRECTIONS, np.array(self.latents), self.readings))


def dense(texts: Representations, poolings: Sequence[str]) -> np.ndarray:
    """(N, poolings x d_model) representations side by side, in float64."""
    return np.concatenate([getattr(texts, name) for name in poolings], axis=1).astype(np.float64)


def poolings_of(readings: Sequence[str]) -> list[str]:
    """The representations that readings are projections of; the mean where there is no projection among them."""
    found = [name.removesuffix("_projection") for name in readings if name.endswith("projection")]
    return found or ["mean"]


@dataclass(frozen=True)
class ControlFitting:
    """What it takes to fit the controls of a reward model.

    Attributes:
        fit: Fits the reward model's kind of head; it is given what makes (N, F) features of all texts from the
            numbers of the pairs that may be looked at.
        select: From those numbers and the readings that are allowed to a selection.
        texts: Representations of the training texts.
        lengths: (N,) tokens of each.
        directions: (d_sae, d_model) decoder directions of all latents.
        readings: Those of the reward model.
        seed: Of the random directions.
    """

    fit: Callable[[Callable[[np.ndarray], np.ndarray]], FittedHead]
    select: Callable[[np.ndarray, Sequence[str]], Selection]
    texts: Representations
    lengths: np.ndarray
    directions: np.ndarray
    readings: tuple[str, ...]
    seed: int

    def controls(self, pairs: np.ndarray) -> list[Control]:
        """Fit all controls to the pairs with these numbers."""
        poolings = poolings_of(self.readings)
        z = dense(self.texts, poolings)
        length = self.lengths[:, None].astype(np.float64)
        return [
            Control("dense representation", self.fit(lambda _: z), poolings),
            self._random(poolings, len(self.select(pairs, self.readings).latents)),
            self._other(pairs),
            Control("length alone", self.fit(lambda _: length), length=True),
        ]

    def _random(self, poolings: list[str], count: int) -> Control:
        """As many random directions as the reward model has features, shared out among the poolings."""
        directions = random_directions(self.texts.mean.shape[1], count, self.seed)
        block = np.zeros((count, len(poolings), directions.shape[1]))
        turn = np.arange(count) % len(poolings)
        block[np.arange(count), turn] = directions
        return self._on_representations("random directions", poolings, block.reshape(count, -1))

    def _on_representations(self, name: str, poolings: list[str], block: np.ndarray) -> Control:
        projections = dense(self.texts, poolings) @ block.T
        head = self.fit(lambda _: projections)
        (weight, bias), *rest = head.layers
        # On the representation itself, so that the directions need not be kept.
        layers = ((weight @ block, bias), *rest)
        return Control(name, FittedHead(layers, head.l2, head.validation_accuracy), poolings)

    def _other(self, pairs: np.ndarray) -> Control:
        """SAE activations where the reward model reads projections, projections where it reads activations."""
        if self.readings == FEATURES["activation"]:
            selection = self.select(pairs, FEATURES["projection"])
            return self._on_representations("decoder projections", ["mean"], self.directions[selection.latents])
        readings = [name for name in self.readings if name.endswith("activation")] or FEATURES["activation"]

        def features_for(train: np.ndarray) -> np.ndarray:
            selection = self.select(train, readings)
            return read_features(self.texts, NO_DIRECTIONS, selection.latents, selection.readings)

        head, selection = self.fit(features_for), self.select(pairs, readings)
        return Control("SAE activations", head, latents=selection.latents.tolist(), readings=list(selection.readings))


def random_directions(d_model: int, count: int, seed: int) -> np.ndarray:
    """(count, d_model) directions drawn uniformly from the unit sphere."""
    directions = np.random.default_rng(seed).standard_normal((count, d_model))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def save_controls(controls: list[Control], path: Path) -> None:
    """Write controls to a file that lies beside the checkpoint, so that they can be shown for any data later."""
    tensors = {
        f"{control.name}/{i}/{kind}": np.ascontiguousarray(tensor)
        for control in controls
        for i, layer in enumerate(control.head.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    described = {c.name: {k: v for k, v in vars(c).items() if k not in ("name", "head")} for c in controls}
    save_file(tensors, path, metadata={"controls": json.dumps(described)})


def load_controls(path: Path) -> list[Control]:
    """The controls that `save_controls` wrote."""
    with safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["controls"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    controls = []
    for name, fields in described.items():
        depth = sum(key.startswith(f"{name}/") for key in tensors) // 2
        layers = tuple((tensors[f"{name}/{i}/weight"], tensors[f"{name}/{i}/bias"]) for i in range(depth))
        controls.append(Control(name, FittedHead(layers, None, None), **fields))
    return controls
