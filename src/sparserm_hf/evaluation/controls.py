"""The controls that every result is shown beside: the same head on something simpler than selected directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..head import FittedHead
from ..representations import Representations

CONTROLS_FILE = "controls.safetensors"


@dataclass(frozen=True)
class Control:
    """A fitted control.

    Attributes:
        name: What it is called in tables.
        reads: What its head reads: `pooled`, `activation`, `projection` or `length`.
        head: The fitted head.
    """

    name: str
    reads: str
    head: FittedHead


@dataclass(frozen=True)
class ControlInputs:
    """What controls may read of N texts.

    Attributes:
        representations: Of the texts.
        lengths: (N,) tokens of each text.
        latents: (2K,) ids of the selected latents.
        directions: (2K, d_model) their decoder directions.
    """

    representations: Representations
    lengths: np.ndarray
    latents: np.ndarray
    directions: np.ndarray

    def read(self, what: str) -> np.ndarray:
        """(N, F) features for a control's head."""
        if what == "pooled":
            return self.representations.pooled.astype(np.float64)
        if what == "length":
            return self.lengths[:, None].astype(np.float64)
        if what == "projection":
            return self.representations.pooled.astype(np.float64) @ self.directions.T
        return self.representations.activations[:, self.latents].toarray().astype(np.float64)


def fit_controls(fit: Callable[[str], FittedHead], features: str, directions: np.ndarray) -> list[Control]:
    """Fit the controls.

    Args:
        fit: Fits the reward model's kind of head to what `ControlInputs.read` gives for the name it is called with,
            or, for `random`, to the pooled representation projected on random directions.
        features: What the reward model itself reads: `projection`, `activation` or `both`.
        directions: (F, d_model) these random directions.
    """
    random = fit("random")
    (weight, bias), *rest = random.layers
    # On the pooled representation itself, so that the directions need not be kept.
    on_pooled = FittedHead(((weight @ directions, bias), *rest), random.l2, random.validation_accuracy)
    other = "projection" if features == "activation" else "activation"
    other_name = "decoder projections" if features == "activation" else "SAE activations"
    return [
        Control("dense representation", "pooled", fit("pooled")),
        Control("random directions", "pooled", on_pooled),
        Control(other_name, other, fit(other)),
        Control("length alone", "length", fit("length")),
    ]


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
    reads = {control.name: control.reads for control in controls}
    save_file(tensors, path, metadata={"reads": json.dumps(reads)})


def load_controls(path: Path) -> list[Control]:
    """The controls that `save_controls` wrote."""
    with safe_open(path, "numpy") as file:
        reads = json.loads(file.metadata()["reads"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    controls = []
    for name, what in reads.items():
        depth = sum(key.startswith(f"{name}/") for key in tensors) // 2
        layers = tuple((tensors[f"{name}/{i}/weight"], tensors[f"{name}/{i}/bias"]) for i in range(depth))
        controls.append(Control(name, what, FittedHead(layers, None, None)))
    return controls
