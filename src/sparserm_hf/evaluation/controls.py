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
from ..shards import Representations

CONTROLS_FILE = "controls.safetensors"
NO_DIRECTIONS = np.zeros((0, 0))


@dataclass(frozen=True)
class Control:
    """A fitted control.

    Attributes:
        name: What it is called in tables.
        head: The fitted head.
        poolings: The representations that the head reads, side by side: `mean`, `last`.
        readings: Which activations of the reward model's latents it reads.
        length: Whether it reads the number of tokens.
    """

    name: str
    head: FittedHead
    poolings: list[str] = field(default_factory=list)
    readings: list[str] = field(default_factory=list)
    length: bool = False

    def rewards(self, texts: Representations, lengths: np.ndarray, latents: Sequence[int]) -> np.ndarray:
        """(N,) rewards of texts.

        Args:
            texts: Representations of N texts.
            lengths: (N,) tokens of each.
            latents: Columns of the reward model's latents in their activations.
        """
        if self.length:
            return self.head.rewards(lengths[:, None].astype(np.float64))
        if self.poolings:
            return self.head.rewards(dense(texts, self.poolings))
        return self.head.rewards(read_features(texts, NO_DIRECTIONS, latents, self.readings))


def dense(texts: Representations, poolings: Sequence[str]) -> np.ndarray:
    """(N, poolings x d_model) representations side by side, in float64."""
    return texts.read(lambda shard: np.concatenate([getattr(shard, name) for name in poolings], 1).astype(np.float64))


def poolings_of(readings: Sequence[str]) -> list[str]:
    """The representations that readings are projections of; the mean where there is no projection among them."""
    found = [name.removesuffix("_projection") for name in readings if name.endswith("projection")]
    return found or ["mean"]


def fit_controls(
    fit: Callable[[Callable[[np.ndarray], np.ndarray]], FittedHead],
    select: Callable[[np.ndarray], np.ndarray],
    texts: Representations,
    lengths: np.ndarray,
    readings: tuple[str, ...],
    decoder: np.ndarray,
    selected: np.ndarray,
    seed: int,
) -> list[Control]:
    """Fit the controls of a reward model.

    Args:
        fit: Fits the reward model's kind of head; it is given what makes (N, F) features of all texts from the
            numbers of the pairs that may be looked at.
        select: From those numbers to the ids of the selected latents.
        texts: Representations of the training texts.
        lengths: (N,) tokens of each.
        readings: The reward model's.
        decoder: (d_sae, d_model) all decoder directions.
        selected: (2K,) ids of the reward model's latents.
        seed: Of the random directions.
    """
    poolings = poolings_of(readings)
    z = dense(texts, poolings)
    length = lengths[:, None].astype(np.float64)
    random = random_directions(decoder.shape[1], len(selected), seed)
    controls = [
        Control("dense representation", fit(lambda _: z), poolings),
        _on_directions("random directions", fit, z, poolings, random),
    ]
    if readings == FEATURES["activation"]:
        head = fit(lambda train: z @ decoder[select(train)].T)
        controls.append(_composed("decoder projections", head, ["mean"], decoder[selected]))
    else:
        reads = [name for name in readings if name.endswith("activation")] or ["mean_activation"]
        head = fit(lambda train: read_features(texts, NO_DIRECTIONS, select(train), reads))
        controls.append(Control("SAE activations", head, readings=reads))
    return [*controls, Control("length alone", fit(lambda _: length), length=True)]


def _on_directions(name: str, fit: Callable, z: np.ndarray, poolings: list[str], directions: np.ndarray) -> Control:
    """The head on projections of each pooling on the same directions."""
    block = np.kron(np.eye(len(poolings)), directions)  # (poolings x K, poolings x d_model)
    return _composed(name, fit(lambda _: z @ block.T), poolings, block)


def _composed(name: str, head: FittedHead, poolings: list[str], directions: np.ndarray) -> Control:
    """A head on projections as one on the representation itself, so that the directions need not be kept."""
    (weight, bias), *rest = head.layers
    layers = ((weight @ directions, bias), *rest)
    return Control(name, FittedHead(layers, head.l2, head.validation_accuracy), poolings)


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
