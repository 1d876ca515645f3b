"""The directions that features are projections on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOW_PURITY = 0.8  # cosine below which a direction is hardly the latent's own


@dataclass(frozen=True)
class Directions:
    """K directions of the residual stream.

    Attributes:
        rows: (K, d_model) the directions.
        purities: (K,) cosine of each with the direction that it was made from.
    """

    rows: np.ndarray
    purities: np.ndarray


def make_directions(given: np.ndarray, kind: str, average: np.ndarray) -> Directions:
    """Make directions to project on.

    `raw` takes the given ones as they are. `orthogonal` makes them orthonormal, and orthogonal to the average token,
    so that one can be taken out of a token without the others: first the part along the average token is taken out of
    each, then they are made orthonormal symmetrically (Loewdin, 1950). With unit rows D, the directions
    (D D^T)^(-1/2) D span the same space, and no orthonormal directions are closer to D. They come from the singular
    value decomposition D = U S V^T, as U V^T.

    Why the average token: it is most of every token. Taking a direction out of a token changes the token's root mean
    square, and with it everything that is read along the average.

    Args:
        given: (K, d_model) decoder directions of latents, or others; K < d_model where they are made orthogonal.
        kind: `orthogonal` or `raw`.
        average: (d_model,) the average token of the training responses.

    >>> made = make_directions(np.array([[1.0, 0, 1], [1, 1, 0]]), "orthogonal", np.array([0, 0, 1.0]))
    >>> np.allclose(made.rows @ made.rows.T, np.eye(2)), np.allclose(made.rows[:, 2], 0)
    (True, True)
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


def random_directions(d_model: int, count: int, seed: int) -> np.ndarray:
    """Draw (count, d_model) directions uniformly from the unit sphere."""
    directions = np.random.default_rng(seed).standard_normal((count, d_model))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)
