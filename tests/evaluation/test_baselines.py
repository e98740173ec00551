import numpy as np
import pytest

from jaxrec.evaluation import baselines
from jaxrec.evaluation.baselines import WEEK_SECONDS


def events_of(histories):
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return rows, np.array([item for history in histories for item in history], np.int32)


def in_blocks(histories):
    return lambda start, stop: events_of(histories[start:stop])


def order(scores):
    """Items from best to worst; no two scores may be equal."""
    assert len(np.unique(scores)) == len(scores)
    return np.argsort(-scores).tolist()


def order_with_ties(scores):
    """The place of every item; equal scores share one place."""
    return np.unique(-scores, return_inverse=True)[1].tolist()


def dense_item_knn(chosen, neighbours):
    """Brute force on a dense [U, I] 0/1 matrix."""
    num_items = chosen.shape[1]
    similarity = np.zeros((num_items, num_items))
    for i in range(1, num_items):
        for j in range(1, num_items):
            shared = (chosen[:, i] * chosen[:, j]).sum()
            if i != j and shared:
                lengths = np.linalg.norm(chosen[:, i]) * np.linalg.norm(chosen[:, j])
                similarity[i, j] = shared / lengths
        for j in sorted(range(num_items), key=lambda j: -similarity[i, j])[neighbours:]:
            similarity[i, j] = 0
    return similarity


def scorers_of(histories, *training, **options):
    """The scorers of all simple baselines by name."""
    fitted = baselines.simple_baselines(*training, **options)
    return {name: baseline(histories) for name, baseline in fitted.items()}


@pytest.fixture
def training():
    """Sparse choices with repeats, unknown items and an item without any choice."""
    generator = np.random.default_rng(0)
    users = generator.integers(0, 40, 300).astype(np.int32)
    items = generator.integers(0, 29, 300).astype(np.int32)
    return users, items, np.arange(300)


def test_popularity_counts_events():
    counts = baselines.popularity(np.array([1, 3, 1, 0]), 5)

    np.testing.assert_array_equal(counts, [1, 2, 0, 1, 0])


def test_recent_popularity_counts_the_last_week_then_all_time():
    """Item 1 was popular long ago; 2 and 3 are even this week and 3 was ahead before."""
    items = np.array([1, 1, 1, 3, 4, 2, 3])
    times = np.array([0, 0, 0, 0, 0, WEEK_SECONDS, 2 * WEEK_SECONDS - 1])

    places = baselines.recent_popularity(items, times, 6)

    assert order(places[1:]) == [2, 1, 0, 3, 4]


def test_recent_popularity_keeps_ties_and_small_differences_between_large_counts():
    """Counts of 10,000 and more with all-time totals one apart need more than float32 holds."""
    items = np.repeat([1, 2, 3], [20_000, 20_001, 20_000])
    times = np.zeros(len(items), int)

    places = baselines.recent_popularity(items, times, 4)

    assert places[2] > places[1] == places[3] > places[0]


def test_recent_popularity_of_positions_takes_their_last_tenth():
    items = np.array([1] * 18 + [2] * 2)

    places = baselines.recent_popularity(items, np.arange(20), 3, window_seconds=None)

    assert places[2] > places[1] > places[0]


def test_personal_frequency_goes_by_count_then_recency_then_popularity():
    rows, items = events_of([[4, 1, 2, 1, 4], [], [5]])
    popularity = np.array([0, 1, 2, 30, 4, 5], np.float32)

    scores = baselines.personal_frequency(rows, items, 3, popularity)

    assert order(scores[0]) == [4, 1, 2, 3, 5, 0]
    assert order(scores[1]) == [3, 5, 4, 2, 1, 0]
    assert order(scores[2]) == [5, 3, 4, 2, 1, 0]


@pytest.mark.parametrize("neighbours", [3, 100])
@pytest.mark.parametrize("block_similarities", [1, 7 * 30, 2**22])
def test_item_knn_equals_dense_brute_force(training, neighbours, block_similarities, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_BLOCK_SIMILARITIES", block_similarities)
    users, items, _ = training
    chosen = np.zeros((40, 30))
    chosen[users, items] = 1

    similarity = baselines.fit_item_knn(users, items, 40, 30, neighbours)

    expected = dense_item_knn(chosen, neighbours)
    assert np.diff(similarity.indptr).max() <= neighbours
    np.testing.assert_allclose(
        np.sort(similarity.toarray(), axis=1), np.sort(expected, axis=1), atol=1e-6
    )
    # Cosines that are equal on paper may round apart, so the identity of neighbours is
    # compared where all are kept.
    if neighbours == 100:
        np.testing.assert_allclose(similarity.toarray(), expected, atol=1e-6)


def test_item_knn_keeps_the_smaller_of_equal_neighbours():
    """Two users chose all items, so that all cosines are 1."""
    users, items = np.repeat([0, 1], 4), np.tile([1, 2, 3, 4], 2)

    similarity = baselines.fit_item_knn(users, items, 2, 5, neighbours=2).toarray()

    np.testing.assert_array_equal(similarity[2] > 0, [False, True, False, True, False])


def test_item_knn_does_not_overflow_with_many_users_and_items():
    users = np.array([69_999, 69_999], np.int32)
    items = np.array([65_000, 64_999], np.int32)

    similarity = baselines.fit_item_knn(users, items, 70_000, 65_001)

    assert similarity.nnz == 2
    assert similarity[65_000, 64_999] == 1


def test_item_knn_scores_sum_over_distinct_history_items(training):
    users, items, _ = training
    similarity = baselines.fit_item_knn(users, items, 40, 30)
    dense = similarity.toarray()

    rows, history = events_of([[3, 5, 3], [], [0]])
    scores = baselines.item_knn(rows, history, 3, similarity)

    np.testing.assert_allclose(scores[0], dense[3] + dense[5], rtol=1e-6)
    np.testing.assert_array_equal(scores[1:], 0)


def test_scorers_give_the_same_rows_in_any_block(training):
    users, items, times = training
    histories = in_blocks([[1, 2, 1], [], [7], [28, 3, 3, 9], [0, 4]])

    scorers = scorers_of(histories, users, items, times, 30)

    assert list(scorers) == ["popularity", "recent_popularity", "personal_frequency", "item_knn"]
    for name, scorer in scorers.items():
        whole = scorer(0, 5)
        assert whole.shape == (5, 30) and whole.dtype == np.float32
        assert scorer(0, 0).shape == (0, 30)
        parts = np.concatenate([scorer(0, 2), scorer(2, 3), scorer(3, 5)])
        for row, part in zip(whole, parts, strict=True):
            assert order_with_ties(row) == order_with_ties(part), name


def test_scorers_without_times_take_the_last_tenth_as_recent(training):
    users, items, times = training
    histories = in_blocks([[1]])

    scorers = scorers_of(histories, users, items, times, 30, has_time=False)

    expected = baselines.recent_popularity(items, times, 30, window_seconds=None)

    np.testing.assert_array_equal(scorers["recent_popularity"](0, 1)[0], expected)
    assert not np.array_equal(expected, baselines.recent_popularity(items, times, 30))


def test_neighbours_are_counted_over_the_newest_events_of_a_user(monkeypatch):
    """A till with more events than all users together does not set the cost."""
    monkeypatch.setattr(baselines, "NEWEST", 2)
    users, items = np.array([0, 0, 0, 1, 1], np.int32), np.array([1, 2, 3, 4, 5], np.int32)
    scorers = scorers_of(in_blocks([[2], [4]]), users, items, np.arange(5), 6)
    assert np.flatnonzero(scorers["item_knn"](0, 2)[0]).tolist() == [3]
    assert np.flatnonzero(scorers["item_knn"](0, 2)[1]).tolist() == [5]
    assert scorers["popularity"](0, 1)[0].tolist() == [0, 1, 1, 1, 1, 1]
