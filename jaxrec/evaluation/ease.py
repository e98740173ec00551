"""EASE, a linear autoencoder in closed form, whose histories are weighted by recency.

Steck, "Embarrassingly shallow autoencoders for sparse data", 2019 (arXiv:1905.03375).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.linalg import lapack

from jaxrec.evaluation.baselines import (
    Baseline,
    Histories,
    Scorer,
    binary,
    history_weights,
    user_sample,
)

GRID: dict[str, tuple] = {
    "half_life": (1, 3, 5, 10),
    "regularisation": (10, 30, 100, 300, 1000, 3000),
}
START = {"half_life": 3, "regularisation": 100}
MAX_ITEMS = 2**14  # a square matrix of float32 then takes 1 GiB; three exist at a time
MAX_PRODUCTS = 2**31  # of two items of a user, in the Gram matrix
GRAM_ROWS = 512  # computed at a time


def gram_matrix(users: sparse.csr_array) -> Float[np.ndarray, "I I"]:
    """X^T X of a matrix of users by items, in blocks of rows."""
    items = users.T.tocsr()
    gram = np.empty((items.shape[0], items.shape[0]), np.float32)
    for start in range(0, len(gram), GRAM_ROWS):
        gram[start : start + GRAM_ROWS] = (items[start : start + GRAM_ROWS] @ users).toarray()
    return gram


def item_weights(gram: Float[np.ndarray, "I I"], regularisation: float) -> Float[np.ndarray, "I I"]:
    """The B that minimises |X - X B|^2 + regularisation |B|^2 and has zeros on the diagonal.

    B[i, j] = -P[i, j] / P[j, j] off the diagonal, with P = (X^T X + regularisation I)^-1.
    """
    matrix = np.array(gram, np.float32, order="F")
    diagonal = np.diag_indices(len(matrix))
    matrix[diagonal] += regularisation
    matrix, failed = lapack.spotrf(matrix, lower=1, overwrite_a=1, clean=1)
    matrix, _ = lapack.spotri(matrix, lower=1, overwrite_c=1)
    assert not failed, "the Gram matrix is positive definite, because it is regularised"
    weights = matrix.T  # the inverse is symmetric, and sparse products need rows in one piece
    weights += np.triu(weights, 1).T
    weights /= -weights[diagonal]
    weights[diagonal] = 0
    return weights


def limit_exceeded(items: Int[np.ndarray, " M"]) -> str:
    """Why EASE cannot be computed for the items of training events; empty if it can."""
    count = len(np.unique(items[items > 0]))
    if count <= MAX_ITEMS:
        return ""
    return f"{count:,} items were chosen, and the limit is {MAX_ITEMS:,}"


class Ease:
    """The baselines of one training set by their hyperparameters.

    If users have chosen more than `MAX_PRODUCTS` pairs of items, the baselines learn from a share
    of the users.

    Args:
        users, items: training events, whose users ascend; item 0 is left out.
    """

    grid = GRID
    start = START

    def __init__(self, users: Int[np.ndarray, " M"], items: Int[np.ndarray, " M"], num_items: int):
        products = int((np.bincount(users).astype(np.int64) ** 2).sum())
        sample = user_sample(users, products, MAX_PRODUCTS)
        self.training_share = float(sample.mean())
        sample &= items > 0
        self.num_items = num_items
        self.items, columns = np.unique(items[sample], return_inverse=True)
        shape = (int(users.max()) + 1, len(self.items))
        self.gram = gram_matrix(binary(users[sample], columns, shape))
        self._last: tuple = ()  # weights of the last point: the next may share them

    def baseline(self, point: Mapping) -> Baseline:
        """Scores are X B, where X holds sums of 0.5^(age / half-life) over a user's events.

        The age is the number of later events.

        Args:
            point: a value for every name of the grid.
        """
        regularisation, half_life = point["regularisation"], point["half_life"]
        if self._last[:1] != (regularisation,):
            self._last = ()  # frees the last matrix first
            self._last = (regularisation, item_weights(self.gram, regularisation))
        weights, items, num_items = self._last[1], self.items, self.num_items

        def with_histories(histories: Histories) -> Scorer:
            def scores(start: int, stop: int) -> Float[np.ndarray, "Q I"]:
                shape = (stop - start, num_items)
                history = history_weights(*histories(start, stop), shape, half_life)
                total = np.zeros(shape, np.float32)
                total[:, items] = history[:, items] @ weights
                return total

            return scores

        return with_histories
