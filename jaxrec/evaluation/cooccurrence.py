"""Decayed co-occurrence: which items follow each of a user's last items. Nothing is learned.

An item-to-item Markov chain with several steps and a decay, as in the sequential rules of Ludewig
and Jannach, "Evaluation of session-based recommendation algorithms", 2018.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy import sparse

from jaxrec.evaluation.baselines import (
    Baseline,
    Histories,
    Scorer,
    history_weights,
    largest_of_rows,
    user_sample,
)
from jaxrec.evaluation.neighbours import MOST_NEIGHBOURS, NeighbourTable

GRID: dict[str, tuple] = {
    "window": (3, 10, 30),
    "half_life": (1, 3, 5),
    "popularity_exponent": (0.0, 0.5),
    "symmetric": (False, True),
}
START = {"window": 10, "half_life": 3, "popularity_exponent": 0.5, "symmetric": False}
MAX_PAIRS = 2**26  # of two events within a window; 12 bytes each
DENSE_ITEMS, DENSE_SHARE = 2**13, 0.02  # from this share of non-zero entries dense is faster
WINDOW = 10  # of what a model adds


def count_followers(
    users: Int[np.ndarray, " M"],
    items: Int[np.ndarray, " M"],
    num_items: int,
    windows: tuple[int, ...],
) -> dict[int, sparse.csr_array]:
    """For every window, [I, I]: the sum of 1 / distance over the times that j came after i.

    Args:
        users, items: training events by user and time; item 0 counts as an event only.
        windows: largest distances, in events of the user; 1 is the next event.
    """
    total = sparse.csr_array((num_items, num_items), dtype=np.float32)
    counts = {}
    for distance in range(1, max(windows) + 1):
        first = _first_of_pairs(users, items, distance)
        weights = np.full(len(first), 1 / distance, np.float32)
        total = total + sparse.csr_array(
            (weights, (items[first], items[first + distance])), shape=(num_items, num_items)
        )
        if distance in windows:
            counts[distance] = total
    return counts


def count_users_of_pairs(
    users: Int[np.ndarray, " M"],
    items: Int[np.ndarray, " M"],
    num_items: int,
    window: int,
) -> sparse.csr_array:
    """[I, I]: the number of users with whom j came after i by at most `window` events.

    Args:
        users, items: as in `count_followers`.
    """
    found = [_first_of_pairs(users, items, distance) for distance in range(1, window + 1)]
    first = np.concatenate(found)
    second = np.concatenate([one + distance for distance, one in enumerate(found, start=1)])
    pairs = pl.DataFrame({"user": users[first], "i": items[first], "j": items[second]})
    counted = pairs.unique().group_by("i", "j").len()
    i, j, number = (counted[name].to_numpy() for name in ("i", "j", "len"))
    return sparse.csr_array((number, (i, j)), shape=(num_items, num_items))


def _first_of_pairs(
    users: Int[np.ndarray, " M"], items: Int[np.ndarray, " M"], distance: int
) -> Int[np.ndarray, " P"]:
    """The events that the same user follows with another event, `distance` events later."""
    same = users[:-distance] == users[distance:]
    return np.flatnonzero(same & (items[:-distance] > 0) & (items[distance:] > 0))


def follower_similarity(
    followers: sparse.csr_array,
    counts: Float[np.ndarray, " I"],
    *,
    popularity_exponent: float,
    symmetric: bool,
) -> sparse.csr_array | Float[np.ndarray, "I I"]:
    """A[i, j] / (n_i n_j^p); n is the number of training events, p the exponent.

    Args:
        followers: A; see `count_followers`.
        symmetric: add half of the transpose of A.
    """
    known = np.maximum(counts, 1).astype(np.float32)
    matrix = (followers + followers.T / 2).tocsr() if symmetric else followers.copy()
    matrix.data /= np.repeat(known, np.diff(matrix.indptr))
    if popularity_exponent:
        matrix.data /= (known**popularity_exponent)[matrix.indices]
    is_dense = len(counts) <= DENSE_ITEMS and matrix.nnz > DENSE_SHARE * len(counts) ** 2
    return matrix.toarray() if is_dense else matrix


class Cooccurrence:
    """The baselines of one training set by their hyperparameters.

    Windows with more than `MAX_PAIRS` pairs of events are left out of the grid. If the smallest is
    too large, the baselines learn from a share of the users.

    Args:
        users, items: training events by user and time.
    """

    def __init__(self, users: Int[np.ndarray, " M"], items: Int[np.ndarray, " M"], num_items: int):
        smallest = GRID["window"][0]
        sample = user_sample(users, smallest * len(users), MAX_PAIRS)
        self.training_share = float(sample.mean())
        users, items = users[sample], items[sample]
        windows = tuple(w for w in GRID["window"] if w == smallest or w * len(users) <= MAX_PAIRS)
        self.grid = {**GRID, "window": windows}
        self.start = {**START, "window": min(START["window"], max(windows))}
        self.counts = np.bincount(items, minlength=num_items).astype(np.float32)
        self.followers = count_followers(users, items, num_items, windows)
        self._events = users, items
        self._tables: dict[tuple[float, int], NeighbourTable] = {}
        self._last: tuple = ()  # similarities of the last point: the next may share them

    def strongest(self, popularity_exponent: float, min_users: int = 1) -> NeighbourTable:
        """The most similar items of every item, which a model adds to its scores.

        It looks ahead `WINDOW` events and is not symmetric, because other points of the grid were
        no better beside a model (Amazon Beauty), or worse (Amazon Scientific).

        Args:
            min_users: leave out pairs of items that fewer users have had in this order.
        """
        key = popularity_exponent, min_users
        if key not in self._tables:
            self._tables[key] = self._strongest(*key)
        return self._tables[key]

    def _strongest(self, popularity_exponent: float, min_users: int) -> NeighbourTable:
        window = min(WINDOW, max(self.followers))
        similar = sparse.csr_array(
            follower_similarity(
                self.followers[window],
                self.counts,
                popularity_exponent=popularity_exponent,
                symmetric=False,
            )
        )
        if min_users > 1:
            users = count_users_of_pairs(*self._events, len(self.counts), window)
            similar = similar.multiply(users >= min_users).tocsr()
        rows = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
        rows, places, chosen = largest_of_rows(rows, similar.indices, similar.data, MOST_NEIGHBOURS)
        shape = (similar.shape[0], int(places.max(initial=0)) + 1)
        items, similarities = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        items[rows, places] = similar.indices[chosen]
        similarities[rows, places] = similar.data[chosen]
        return NeighbourTable(items, similarities)

    def baseline(self, point: Mapping) -> Baseline:
        """Scores are sums over the user's events of 0.5^(age / half-life) times similarity.

        The age is the number of later events.

        Args:
            point: a value for every name of the grid.
        """
        shared = tuple(value for name, value in point.items() if name != "half_life")
        if self._last[:1] != (shared,):
            similarity = follower_similarity(
                self.followers[point["window"]],
                self.counts,
                popularity_exponent=point["popularity_exponent"],
                symmetric=point["symmetric"],
            )
            self._last = (shared, similarity)
        similarity, half_life = self._last[1], point["half_life"]
        num_items = len(self.counts)

        def with_histories(histories: Histories) -> Scorer:
            def scores(start: int, stop: int) -> Float[np.ndarray, "Q I"]:
                shape = (stop - start, num_items)
                total = history_weights(*histories(start, stop), shape, half_life) @ similarity
                return total if isinstance(total, np.ndarray) else total.toarray()

            return scores

        return with_histories
