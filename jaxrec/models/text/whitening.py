"""PCA whitening of text vectors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK_SIZE = 16384  # vectors in float64 at a time
# least standard deviation, as a share of the largest one: dividing by less would amplify noise
FLOOR = 1e-3


@dataclass(frozen=True)
class Whitening:
    """The affine map after which the vectors of a catalogue are uncorrelated, of unit variance."""

    mean: Float[np.ndarray, " text"]
    projection: Float[np.ndarray, "text D"]

    def apply(
        self, vectors: Float[np.ndarray, "I text"], known: Bool[np.ndarray, " I"]
    ) -> Float[np.ndarray, "I D"]:
        """Whitened vectors; the zero vector, which is their mean, where `known` is False."""
        return np.where(known[:, None], (vectors - self.mean) @ self.projection, 0)


def fit_whitening(
    vectors: Float[np.ndarray, "I text"],
    known: Bool[np.ndarray, " I"],
    width: int,
) -> Whitening | None:
    """PCA whitening (Su et al., arXiv:2103.15316), fitted on the rows that are `known`.

    Args:
        vectors: text vectors of the catalogue.
        known: False for items without text.
        width: principal components to keep; D is the smaller of this and the vectors' rank.

    Returns:
        None if there are fewer than two known rows, or if all known rows are equal.
    """
    rows = np.flatnonzero(known)
    if len(rows) < 2 or all((block == vectors[rows[0]]).all() for block in _blocks(vectors, rows)):
        return None
    mean = np.asarray(sum(block.sum(0) for block in _blocks(vectors, rows))) / len(rows)
    scatter = sum((block - mean).T @ (block - mean) for block in _blocks(vectors, rows))
    variances, components = np.linalg.eigh(scatter / (len(rows) - 1))
    variances, components = variances[::-1], components[:, ::-1]
    rank = np.sum(variances > variances[0] * len(variances) * np.finfo(np.float64).eps)
    kept = min(width, rank, len(rows) - 1)
    deviations = np.sqrt(np.maximum(variances[:kept], FLOOR**2 * variances[0]))
    projection = components[:, :kept] / deviations
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))


def _blocks(
    vectors: Float[np.ndarray, "I text"], rows: Int[np.ndarray, " n"]
) -> Iterator[Float[np.ndarray, "b text"]]:
    """The given rows in float64, one block at a time: all of them may be gigabytes."""
    for start in range(0, len(rows), BLOCK_SIZE):
        yield vectors[rows[start : start + BLOCK_SIZE]].astype(np.float64)
