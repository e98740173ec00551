import numpy as np
import pytest

from jaxrec.evaluation import ease
from jaxrec.evaluation.ease import Ease

NUM_ITEMS = 8
HISTORIES = [[1, 2, 3, 2, 5], [5, 1, 2], [6, 3], [0, 2, 5, 1, 3, 1]]
QUERIES = [[2, 5, 2], [], [4], [3, 0, 1]]


def events_of(histories):
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return rows, np.array([item for history in histories for item in history], np.int32)


def scores(regularisation, half_life):
    baseline = Ease(*events_of(HISTORIES), NUM_ITEMS).baseline(
        {"regularisation": regularisation, "half_life": half_life}
    )
    return baseline(lambda start, stop: events_of(QUERIES[start:stop]))(0, len(QUERIES))


def chosen(histories):
    matrix = np.zeros((len(histories), NUM_ITEMS))
    for row, history in enumerate(histories):
        matrix[row, [item for item in history if item]] = 1
    return matrix


@pytest.mark.parametrize("regularisation", [1, 100])
def test_weights_minimise_the_loss_column_by_column(regularisation):
    """Without the diagonal, every column of B is a ridge regression on the other items."""
    users, expected = chosen(HISTORIES), np.zeros((NUM_ITEMS, NUM_ITEMS))
    for item in range(NUM_ITEMS):
        others = np.delete(np.arange(NUM_ITEMS), item)
        known = users[:, others]
        gram = known.T @ known + regularisation * np.eye(len(others))
        expected[others, item] = np.linalg.solve(gram, known.T @ users[:, item])
    read = np.zeros((len(QUERIES), NUM_ITEMS))
    for row, query in enumerate(QUERIES):
        for age, item in enumerate(reversed(query)):
            read[row, item] += 0.5 ** (age / 3)
    np.testing.assert_allclose(scores(regularisation, 3), read @ expected, atol=1e-6)


def test_items_that_nobody_chose_in_training_score_nothing():
    found = scores(10, 1)
    assert not found[:, [0, 4, 7]].any()
    assert not found[1:3].any()


def test_blocks_of_the_gram_matrix(monkeypatch):
    monkeypatch.setattr(ease, "GRAM_ROWS", 2)
    model = Ease(*events_of(HISTORIES), NUM_ITEMS)
    users = chosen(HISTORIES)[:, model.items]
    np.testing.assert_array_equal(model.gram, users.T @ users)


def test_a_share_of_the_users_bounds_the_work(monkeypatch):
    monkeypatch.setattr(ease, "MAX_PRODUCTS", 40)  # of 25 + 9 + 4 + 36
    model = Ease(*events_of(HISTORIES), NUM_ITEMS)
    assert model.training_share == 7 / 16
    np.testing.assert_array_equal(model.items, [1, 2, 3, 5, 6])


def test_too_many_items_are_named_with_the_limit(monkeypatch):
    items = np.array([0, 1, 2, 2, 3])
    assert ease.limit_exceeded(items) == ""
    monkeypatch.setattr(ease, "MAX_ITEMS", 2)
    assert ease.limit_exceeded(items) == "3 items were chosen, and the limit is 2"
