"""Baselines: popularity, recent popularity, personal frequency and item-kNN.

Only the order of the scores has a meaning. Callers leave item 0, the unknown item, out of rankings.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

WEEK_SECONDS = 7 * 24 * 3600
MAX_BLOCK_SIMILARITIES = 2**22
# The events of a user, the newest ones, that item-kNN and personal frequency read. Their cost grows
# with the square of a history, and a till or a robot may have more events than all other users.
NEWEST = 10_000
HALF_LIVES = 20  # older events would weigh less than a millionth

Scorer = Callable[[int, int], Float[np.ndarray, "Q I"]]
"""Scores of the queries [start, stop) for every item."""
Histories = Callable[[int, int], tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]]
"""Row and item of every event in the histories of queries [start, stop), in time order."""
Baseline = Callable[[Histories], Scorer]
"""A fitted baseline; it scores any queries by their histories."""


def popularity(train_items: Int[np.ndarray, " M"], num_items: int) -> Float[np.ndarray, " I"]:
    """Number of events of every item."""
    return np.bincount(train_items, minlength=num_items).astype(np.float32)


def recent_popularity(
    train_items: Int[np.ndarray, " M"],
    train_times: Int[np.ndarray, " M"],
    num_items: int,
    window_seconds: int | None = WEEK_SECONDS,
) -> Float[np.ndarray, " I"]:
    """Items ranked by their events in the last window of training time, equals by popularity.

    Where times are only positions (`window_seconds=None`), the window holds those above their 0.9
    quantile. Returns the position in ascending order; equal items share one.
    """
    if window_seconds is None:
        start = np.quantile(train_times, 0.9)
    else:
        start = train_times.max() - window_seconds
    recent = np.bincount(train_items[train_times > start], minlength=num_items)
    total = np.bincount(train_items, minlength=num_items)
    # positions, because float32 does not hold all values of this sum
    _, positions = np.unique(recent * (total.max() + 1) + total, return_inverse=True)
    return positions.astype(np.float32)


def personal_frequency(
    rows: Int[np.ndarray, " X"],
    items: Int[np.ndarray, " X"],
    num_rows: int,
    popularity: Float[np.ndarray, " I"],
) -> Float[np.ndarray, "Q I"]:
    """The items of each history by number of events, equals by their last event, the newest first.

    All other items follow by popularity.

    Args:
        rows, items: the events of the queries' histories; see `Histories`.
        num_rows: number of queries.
    """
    scores = np.tile(popularity / (popularity.max() + 1), (num_rows, 1))
    cells = rows * len(popularity) + items
    chosen, age, count = np.unique(cells[::-1], return_index=True, return_counts=True)
    ascending = np.lexsort((-age, count))
    scores.flat[chosen[ascending]] = np.arange(1, len(chosen) + 1)
    return scores


def fit_item_knn(
    train_users: Int[np.ndarray, " M"],
    train_items: Int[np.ndarray, " M"],
    num_users: int,
    num_items: int,
    neighbours: int = 100,
) -> sparse.csr_array:
    """Cosine similarity of items by the users they share, [I, I].

    Row i holds the `neighbours` items most similar to i, without i and item 0; among equals the
    smaller item.
    Deshpande and Karypis, "Item-based top-N recommendation algorithms", 2004.
    """
    known = train_items > 0
    columns = binary(train_users[known], train_items[known], (num_users, num_items))
    lengths = np.sqrt(columns.sum(axis=0))
    columns.data /= lengths[columns.indices]
    rows = columns.T.tocsr()
    block = max(MAX_BLOCK_SIMILARITIES // num_items, 1)
    return sparse.vstack(
        [
            _nearest(rows[start : start + block] @ columns, start, neighbours)
            for start in range(0, num_items, block)
        ],
        format="csr",
    )


def item_knn(
    rows: Int[np.ndarray, " X"],
    items: Int[np.ndarray, " X"],
    num_rows: int,
    similarity: sparse.csr_array,
) -> Float[np.ndarray, "Q I"]:
    """Sum of the similarities to the distinct items of each history; see `personal_frequency`."""
    return (binary(rows, items, (num_rows, similarity.shape[0])) @ similarity).toarray()


def simple_baselines(
    train_users: Int[np.ndarray, " M"],
    train_items: Int[np.ndarray, " M"],
    train_times: Int[np.ndarray, " M"],
    num_items: int,
    *,
    has_time: bool = True,
) -> dict[str, Baseline]:
    """The baselines of this module by name, fitted to the training events, whose users ascend.

    Args:
        has_time: False where times are only positions.
    """
    popular = popularity(train_items, num_items)
    window = WEEK_SECONDS if has_time else None
    recent = recent_popularity(train_items, train_times, num_items, window)
    kept = newest_events(train_users)
    users, items = train_users[kept], train_items[kept]
    similarity = fit_item_knn(users, items, int(train_users.max()) + 1, num_items)

    return {
        "popularity": lambda _: lambda start, stop: np.tile(popular, (stop - start, 1)),
        "recent_popularity": lambda _: lambda start, stop: np.tile(recent, (stop - start, 1)),
        "personal_frequency": lambda histories: (
            lambda start, stop: personal_frequency(*histories(start, stop), stop - start, popular)
        ),
        "item_knn": lambda histories: (
            lambda start, stop: item_knn(*histories(start, stop), stop - start, similarity)
        ),
    }


def newest_events(users: Int[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
    """True for the `NEWEST` last events of every user; users ascend."""
    from_end = np.cumsum(np.bincount(users))[users] - np.arange(len(users))
    return from_end <= NEWEST


def user_sample(users: Int[np.ndarray, " M"], cost: int, limit: int) -> Bool[np.ndarray, " M"]:
    """The events of every n-th user, so that a cost that grows with them meets a limit."""
    number = np.cumsum(np.diff(users, prepend=users[:1]) > 0)
    return number % max(-(-cost // limit), 1) == 0


def history_weights(
    rows: Int[np.ndarray, " X"],
    items: Int[np.ndarray, " X"],
    shape: tuple[int, int],
    half_life: float,
) -> sparse.csr_array:
    """For every query and item, [Q, I]: the sum of 0.5^(age / half-life) over its events.

    The age is the number of later events in the history. Events older than `HALF_LIVES`
    half-lives weigh nothing.

    Args:
        rows, items: the events of the queries' histories; see `Histories`.
    """
    ages = np.searchsorted(rows, rows, side="right") - 1 - np.arange(len(rows))
    kept = ages <= HALF_LIVES * half_life
    weights = (0.5 ** (ages[kept] / half_life)).astype(np.float32)
    return sparse.csr_array((weights, (rows[kept], items[kept])), shape=shape)


def binary(
    rows: Int[np.ndarray, " X"], columns: Int[np.ndarray, " X"], shape: tuple[int, int]
) -> sparse.csr_array:
    """A matrix of ones where a pair occurs."""
    matrix = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1
    return matrix


def _nearest(similar: sparse.csr_array, first_item: int, neighbours: int) -> sparse.csr_array:
    """The largest `neighbours` entries of every row; row r is item `first_item + r`."""
    rows = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
    others = np.flatnonzero(rows + first_item != similar.indices)
    rows, columns, values = rows[others], similar.indices[others], similar.data[others]
    rows, _, chosen = largest_of_rows(rows, columns, values, neighbours)
    return sparse.csr_array((values[chosen], (rows, columns[chosen])), shape=similar.shape)


def largest_of_rows(
    rows: Int[np.ndarray, " X"],
    columns: Int[np.ndarray, " X"],
    values: Float[np.ndarray, " X"],
    most: int,
) -> tuple[Int[np.ndarray, " x"], Int[np.ndarray, " x"], Int[np.ndarray, " x"]]:
    """The largest `most` entries of every row: their row, place in the row (from 0), and number.

    Args:
        rows: ascending.
    """
    order = np.lexsort((columns, -values, rows))  # which leaves the rows as they are
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = places < most
    return rows[kept], places[kept], order[kept]
