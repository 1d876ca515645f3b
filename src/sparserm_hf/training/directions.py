"""The directions of the residual stream on which texts are projected: decoder rows, orthonormal or random ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import orth

LOW_PURITY = 0.8  # cosine below which a direction hardly represents its latent


@dataclass(frozen=True)
class Directions:
    """K directions of the residual stream.

    Attributes:
        rows: (K, d_model) one direction in each row.
        purities: (K,) cosine of each direction with the direction that it was made from.
    """

    rows: np.ndarray
    purities: np.ndarray


def make_directions(given: np.ndarray, kind: str, average: np.ndarray) -> Directions:
    """Make directions to project on.

    `raw` returns the given directions. `orthogonal` makes them orthonormal, and orthogonal to the average token, so
    that one direction can be removed from a token without changing the others. First the part along the average token
    is removed from each direction. Then the directions are made orthonormal symmetrically (Loewdin, 1950): with unit
    rows D, the directions (D D^T)^(-1/2) D span the same space, and no orthonormal directions are closer to D. With
    the singular value decomposition D = U S V^T they are U V^T.

    Directions must be orthogonal to the average token because that is the largest part of every token. Removing a
    direction changes a token's root mean square, and so, after normalisation, its part along the average token.

    Args:
        given: (K, d_model) directions, such as decoder directions of latents; K < d_model for `orthogonal`.
        kind: `orthogonal` or `raw`.
        average: (d_model,) average token of the training responses.

    Example:
        >>> given, average = np.array([[1.0, 0, 1], [1, 1, 0]]), np.array([0, 0, 1.0])
        >>> made = make_directions(given, "orthogonal", average)
        >>> np.allclose(made.rows @ made.rows.T, np.eye(2)), np.allclose(made.rows @ average, 0)
        (True, True)
        >>> made.purities.round(2)
        array([0.65, 0.92])
    """
    if kind == "raw":
        return Directions(given, np.ones(len(given)))
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    along = average / max(np.linalg.norm(average), 1e-12)
    rest = unit - np.outer(unit @ along, along)
    rest = rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)
    left, _, right = np.linalg.svd(rest, full_matrices=False)
    rows = left @ right
    return Directions(rows, (rows * unit).sum(1))


def directions_through(given: np.ndarray, kept: np.ndarray) -> Directions:
    """Make orthonormal directions that are close to given directions and whose span holds some vectors exactly.

    A linear reward is the dot product of a text's vector with a weight vector, so other directions can give the same
    reward if they span the weight vector. Each given direction has a part orthogonal to the kept vectors. The
    span holds the kept vectors and the leading right singular vectors of these parts. Within this span no orthonormal
    directions are closer to the given directions, see `make_directions`.

    Args:
        given: (K, d_model) directions, such as decoder directions of latents; K < d_model.
        kept: (n, d_model) vectors that the directions must span; n at most K.

    Example:
        >>> given, kept = np.array([[1.0, 0, 0], [0.6, 0.8, 0]]), np.array([[1.0, 1, 0.1]])
        >>> made = directions_through(given, kept)
        >>> np.allclose(made.rows @ made.rows.T, np.eye(2)), np.allclose(kept @ made.rows.T @ made.rows, kept)
        (True, True)
        >>> made.purities.round(2)
        array([0.95, 0.95])
    """
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    inside = orth(kept.T).T  # (n, d_model)
    beside = np.linalg.svd(unit - unit @ inside.T @ inside, full_matrices=False)[2]
    span = np.concatenate([inside, beside[: len(unit) - len(inside)]])  # (K, d_model), orthonormal
    left, _, right = np.linalg.svd(unit @ span.T)
    rows = left @ right @ span
    return Directions(rows, (rows * unit).sum(1))


def random_directions(d_model: int, count: int, seed: int) -> np.ndarray:
    """Draw directions uniformly from the unit sphere.

    Args:
        d_model: Dimensions of the residual stream.
        count: Number of directions.
        seed: Seed of the draw.

    Returns:
        (count, d_model) unit vectors.

    Example:
        >>> drawn = random_directions(d_model=5, count=2, seed=0)
        >>> drawn.shape, np.allclose(np.linalg.norm(drawn, axis=1), 1)
        ((2, 5), True)
    """
    directions = np.random.default_rng(seed).standard_normal((count, d_model))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)
