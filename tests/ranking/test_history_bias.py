import numpy as np
import polars as pl
import pytest

from jaxrec.ranking.adjustments import amounts_of
from jaxrec.ranking.history_bias import HistoryBias, ItemNeighbours, history_adjustments
from jaxrec.types import NEG_INF, EventLog, Queries

LOG = EventLog(
    user_ids=pl.Series(["a"]),
    event_type_names=("buy", "view"),
    offsets=np.array([0, 6]),
    items=np.array([1, 2, 9, 1, 3, 2]),  # item 9 is newer than the model
    event_types=np.array([0, 0, 0, 1, 0, 0]),
    times=np.arange(6),
    has_time=True,
)
FOLLOWERS = ItemNeighbours(
    items=np.array([[0, 0], [2, 3], [1, 0], [3, 2]]),
    amounts=np.array([[0, 0], [4, 2], [8, 0], [1, 5]], np.float32),
    half_life=1.0,
    event_types=np.array([True, False]),
)
REPEATS = np.array([[0.5, 0.25], [3, 2]], np.float32)
ALL = np.arange(5)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, [0, 0, 0, 0, 0]),
        (2, [0, 8, 2, 1, 0]),
        # the view does not count, and the first two events are too old
        (6, [0, 8, 2.5, 0.5, 0]),
    ],
)
def test_events_add_to_what_follows_their_items(position, expected):
    adjustments = FOLLOWERS.adjustments(LOG, Queries(np.array([0]), np.array([position])))
    np.testing.assert_allclose(amounts_of(adjustments, 1, ALL)[0], expected)


@pytest.mark.parametrize(
    "neighbours", [{}, {"follows": FOLLOWERS}, {"follows": FOLLOWERS, "again": FOLLOWERS}]
)
def test_what_events_add_is_the_sum_of_what_each_adds(neighbours):
    bias, queries = HistoryBias(REPEATS, neighbours), Queries(np.array([0]), np.array([6]))
    assert bias
    expected = amounts_of(bias.adjustments(LOG, queries), 1, ALL)[0]
    each = bias.of_events(LOG, ALL)
    assert each.shape == (6, 5)
    np.testing.assert_allclose(each.sum(0), expected)
    assert not np.any(each[2] if neighbours else each[3])
    alone = [neighbour.of_events(LOG, ALL) for neighbour in neighbours.values()]
    repeats = HistoryBias(REPEATS).of_events(LOG, ALL)
    np.testing.assert_allclose(sum(alone, repeats), each)


def test_blocks_hold_their_own_queries():
    queries = Queries(np.zeros(7, int), np.arange(7))
    whole = FOLLOWERS.adjustments(LOG, queries)
    together = amounts_of(whole, 7, ALL)
    apart = [amounts_of(lambda *_, n=n: whole(n, n + 1), 1, ALL)[0] for n in range(7)]
    np.testing.assert_array_equal(together, apart)
    assert np.all(np.diff(whole(0, 7).rows) >= 0)


def test_a_mask_is_stronger_than_what_events_add():
    queries = Queries(np.array([0]), np.array([6]))
    adjustments = history_adjustments(
        LOG, queries, ("buy",), HistoryBias(REPEATS, {"follows": FOLLOWERS})
    )
    assert np.all(amounts_of(adjustments, 1, np.array([1, 2, 3]))[0] < NEG_INF / 2)


def test_without_weights_nothing_is_added():
    bias, queries = HistoryBias(0 * REPEATS), Queries(np.array([0]), np.array([6]))
    assert not bias
    assert not len(bias.adjustments(LOG, queries)(0, 1).rows)
