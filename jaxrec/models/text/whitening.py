"""PCA whitening of text vectors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

MOMENT_ROWS = 16384  # vectors whose moments are taken at a time


@dataclass(frozen=True)
class Whitening:
    """The affine map that makes a catalogue's vectors uncorrelated with unit variance."""

    mean: Float[np.ndarray, " Dt"]
    projection: Float[np.ndarray, "Dt D"]

    def apply(
        self, vectors: Float[np.ndarray, "I Dt"], known: Bool[np.ndarray, " I"]
    ) -> Float[np.ndarray, "I D"]:
        """Whitened vectors; the zero vector, which is the mean, where `known` is false."""
        return np.where(known[:, None], (vectors - self.mean) @ self.projection, 0)


def fit_whitening(
    vectors: Float[np.ndarray, "I Dt"],
    known: Bool[np.ndarray, " I"],
    width: int,
    floor: float = 1e-3,
) -> Whitening | None:
    """PCA whitening (Su et al., arXiv:2103.15316), fitted on the rows that are `known`.

    Args:
        vectors: text vectors of the catalogue.
        known: false for items without text.
        width: principal components to keep: D is this, or the vectors' rank if that is less.
        floor: standard deviations below this share of the largest count as this much, so that
            noise is not blown up.

    Returns:
        None if the known rows are all equal, or fewer than two.
    """
    rows = np.flatnonzero(known)
    if len(rows) < 2 or all((block == vectors[rows[0]]).all() for block in _blocks(vectors, rows)):
        return None
    mean = sum(block.sum(0) for block in _blocks(vectors, rows)) / len(rows)
    scatter = sum((block - mean).T @ (block - mean) for block in _blocks(vectors, rows))
    variances, components = np.linalg.eigh(scatter / (len(rows) - 1))
    variances, components = variances[::-1], components[:, ::-1]
    rank = np.sum(variances > variances[0] * len(variances) * np.finfo(np.float64).eps)
    kept = min(width, rank, len(rows) - 1)
    deviations = np.sqrt(np.maximum(variances[:kept], floor**2 * variances[0]))
    projection = components[:, :kept] / deviations
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))


def _blocks(
    vectors: Float[np.ndarray, "I Dt"], rows: Int[np.ndarray, " n"]
) -> Iterator[Float[np.ndarray, "b Dt"]]:
    """Some of the vectors in float64, a few at a time: all of them may be gigabytes."""
    for start in range(0, len(rows), MOMENT_ROWS):
        yield vectors[rows[start : start + MOMENT_ROWS]].astype(np.float64)
