"""Controls: the same kind of head on simpler inputs than the selected features. Every result is shown beside them.

`training/control_fitting.py` fits them. This file computes their rewards, and saves and loads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..representations import Representations
from ..runtime import SparseRMError, find_file, reading, shown

CONTROLS_FILE = "controls.safetensors"
READS = ("representation", "activations", "length")


Layers = tuple[tuple[np.ndarray, np.ndarray], ...]  # (weight, bias) of each affine layer


def apply_layers(layers: Layers, features: np.ndarray) -> np.ndarray:
    """Compute the rewards that a head gives to N texts.

    Args:
        layers: (weight, bias) of each affine layer, with a ReLU between two; the last layer has one output.
        features: (N, F) input features of the head.

    Returns:
        (N,) rewards.

    Example:
        >>> apply_layers(((np.array([[1.0, -2.0]]), np.array([0.5])),), np.array([[3.0, 1.0]]))
        array([1.5])
    """
    x = features
    for i, (weight, bias) in enumerate(layers):
        x = (np.maximum(x, 0.0) if i else x) @ weight.T + bias
    return x[:, 0]


@dataclass(frozen=True)
class Control:
    """A fitted control.

    Attributes:
        name: Name of the control in tables and files, see `RowName`.
        layers: (weight, bias) of each affine layer of the head, see `apply_layers`.
        reads: Input of the head: the `representation` of a text, the mean `activations` of the reward model's latents,
            or the `length` in tokens.
    """

    name: str
    layers: Layers
    reads: str

    def rewards(self, texts: Representations, lengths: np.ndarray, latents: Sequence[int]) -> np.ndarray:
        """Compute the (N,) rewards of texts.

        Args:
            texts: Representations of N texts.
            lengths: (N,) tokens of each text.
            latents: Columns of the reward model's latents in the stored activations.
        """
        if self.reads == "length":
            features = lengths[:, None].astype(np.float64)
        elif self.reads == "representation":
            features = texts.read(lambda shard: shard.mean.astype(np.float64))
        else:
            features = mean_activations(texts, latents)
        return apply_layers(self.layers, features)


def mean_activations(texts: Representations, latents: Sequence[int] | np.ndarray) -> np.ndarray:
    """Load the (N, K) mean activations of latents on represented texts, in float64."""
    return texts.read(lambda shard: shard.mean_activation[:, latents].toarray().astype(np.float64))


def save_controls(controls: list[Control], path: Path) -> None:
    """Write controls to a file beside the checkpoint, for later evaluations on other pairs."""
    tensors = {
        f"{control.name}/{i}/{kind}": np.ascontiguousarray(tensor)
        for control in controls
        for i, layer in enumerate(control.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    reads = {control.name: control.reads for control in controls}
    save_file(tensors, path, metadata={"controls": json.dumps(reads)})


def load_controls(path: Path) -> list[Control]:
    """Load the controls that `save_controls` wrote.

    Raises:
        SparseRMError: The file is broken.
    """
    with reading(f"The file {path.name} beside the reward model"):
        return _read_controls(path)


def _read_controls(path: Path) -> list[Control]:
    with safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["controls"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    controls = []
    for name, reads in described.items():
        depth = sum(key.startswith(f"{name}/") for key in tensors) // 2
        layers = tuple((tensors[f"{name}/{i}/weight"], tensors[f"{name}/{i}/bias"]) for i in range(depth))
        reads = reads if isinstance(reads, str) else _read_before(reads)
        if reads not in READS or not layers:
            raise ValueError(f"the control {shown(name)} has {len(layers)} layers and the input {shown(reads)}")
        outputs = [weight.shape[0] for weight, _ in layers[:-1]] + [1]
        inputs = [layers[0][0].shape[-1], *outputs[:-1]]
        for (weight, bias), given, made in zip(layers, inputs, outputs, strict=True):
            arrays = {f"{name}: weight": weight, f"{name}: bias": bias}
            check_arrays(arrays, {f"{name}: weight": (made, given), f"{name}: bias": (made,)})
        controls.append(Control(name, layers, reads))
    return controls


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError unless arrays have the given shapes and hold finite numbers.

    Args:
        arrays: Arrays by name.
        shapes: Shapes by name.

    Example:
        >>> check_arrays({"bias": np.zeros(3)}, {"bias": (2,)})
        Traceback (most recent call last):
        ...
        ValueError: 'bias' has the shape [3], not [2]
    """
    for name, shape in shapes.items():
        if arrays[name].shape != tuple(shape):
            raise ValueError(f"{shown(name)} has the shape {list(arrays[name].shape)}, not {list(shape)}")
        if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{shown(name)} holds numbers that are not finite")


def check_controls(controls: Sequence[Control], hidden_size: int, latents: int) -> None:
    """Raise a `SparseRMError` if the inputs of controls have another width than the reward model provides."""
    widths = {"representation": hidden_size, "activations": latents, "length": 1}
    for control in controls:
        width = control.layers[0][0].shape[1]
        if width != widths[control.reads]:
            raise SparseRMError(
                f"The control {shown(control.name)} in {CONTROLS_FILE} needs {width} numbers for a text, but the "
                f"reward model has {widths[control.reads]}: remove the file, which belongs to another reward model."
            )


def find_controls(name: str, revision: str | None = None) -> list[Control]:
    """Load the controls beside a checkpoint.

    Args:
        name: Folder or Hub id of the reward model.
        revision: Revision of the reward model on the Hub.

    Returns:
        The controls; empty if the checkpoint was saved without controls.

    Raises:
        SparseRMError: The file of the controls is broken.
    """
    file = find_file(name, CONTROLS_FILE, revision)
    return load_controls(file) if file else []


def _read_before(fields: dict[str, Any]) -> str:
    """Name the input of a control that was saved before version 0.3."""
    if fields["length"]:
        return "length"
    return "activations" if fields["readings"] else "representation"
