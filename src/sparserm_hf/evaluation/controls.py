"""The controls that every result is shown beside: the same head on something simpler than selected features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.linalg import block_diag
from transformers.utils import cached_file

from ..features import FEATURES, read_features
from ..fitting import HeadFitter
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
        readings: Which activations of the reward model's latents it reads beside them.
        length: Whether it reads the number of tokens and nothing else.
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
        read = [dense(texts, self.poolings)] if self.poolings else []
        if self.readings:
            read.append(read_features(texts, NO_DIRECTIONS, latents, self.readings))
        return self.head.rewards(np.concatenate(read, axis=1))


def dense(texts: Representations, poolings: Sequence[str]) -> np.ndarray:
    """(N, poolings x d_model) representations side by side, in float64."""
    return texts.read(lambda shard: np.concatenate([getattr(shard, name) for name in poolings], 1).astype(np.float64))


def poolings_of(readings: Sequence[str]) -> list[str]:
    """The representations that readings are projections of; the mean where there is no projection among them."""
    found = [name.removesuffix("_projection") for name in readings if name.endswith("projection")]
    return found or ["mean"]


def fit_controls(fitter: HeadFitter) -> list[Control]:
    """Fit the controls of the reward model that a fitter makes.

    Where rewards must not follow styles, those of the controls must not either, but for length alone; the reward
    model as it would be otherwise is a control then.
    """
    args, texts, decoder, selected = fitter.args, fitter.texts, fitter.decoder, fitter.select().latents
    readings = args.readings
    poolings = poolings_of(readings)
    z = dense(texts, poolings)
    length = fitter.pairs.lengths[:, None].astype(np.float64)
    random = random_directions(decoder.shape[1], len(selected), args.seed)
    block = np.kron(np.eye(len(poolings)), random)  # (poolings x K, poolings x d_model)
    controls = [
        Control("dense representation", fitter.fit(lambda _: z), poolings),
        _composed("random directions", fitter.fit(lambda _: z @ block.T), random, projections_on(poolings)),
    ]
    if readings == FEATURES["activation"]:
        head = fitter.fit(lambda train: z @ decoder[fitter.select(train).latents].T)
        controls.append(_composed("decoder projections", head, decoder[selected], FEATURES["projection"]))
    else:
        reads = tuple(name for name in readings if name.endswith("activation")) or FEATURES["activation"]

        def activations(train: np.ndarray) -> np.ndarray:
            return read_features(texts, NO_DIRECTIONS, fitter.select(train).latents, reads)

        controls.append(_composed("SAE activations", fitter.fit(activations), decoder[selected], reads))
    if args.debias_names:
        head = fitter.fit(fitter.read_selected, debias=False)
        controls.append(_composed("without debiasing", head, decoder[selected], readings))
    return [*controls, Control("length alone", fitter.fit(lambda _: length, debias=False), length=True)]


def projections_on(poolings: Sequence[str]) -> tuple[str, ...]:
    """The readings that project each of these representations."""
    return tuple(f"{name}_projection" for name in poolings)


def _composed(name: str, head: FittedHead, directions: np.ndarray, readings: Sequence[str]) -> Control:
    """A head on readings as one on representations and activations, so that the directions need not be kept.

    Args:
        name: Of the control.
        head: Its first layer reads (readings x K,) features, projections first.
        directions: (K, d_model) what the projections are on.
        readings: Some of ``configuration_sparserm.READINGS``.
    """
    reads = [reading for reading in readings if reading.endswith("activation")]
    poolings = [reading.removesuffix("_projection") for reading in readings if reading not in reads]
    (weight, bias), *rest = head.layers
    block = block_diag(*[directions] * len(poolings), np.eye(len(directions) * len(reads)))
    layers = ((weight @ block, bias), *rest)
    return Control(name, FittedHead(layers, head.l2, head.validation_accuracy), poolings, reads)


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


def find_controls(name: str, revision: str | None = None) -> list[Control]:
    """The controls that lie beside a checkpoint, a folder or on the Hub; none where it was saved without."""
    file = cached_file(name, CONTROLS_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    return load_controls(Path(file)) if file else []
