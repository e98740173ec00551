from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from jaxrec.evaluation import cooccurrence
from jaxrec.evaluation.cooccurrence import (
    GRID,
    Cooccurrence,
    follower_similarity,
)
from jaxrec.evaluation.neighbours import NeighbourFit

NUM_ITEMS = 7
HISTORIES = [[1, 2, 3, 2, 5], [4, 1, 2], [6], [0, 2, 5, 0, 1, 3, 1]]
QUERIES = [[2, 5, 2], [], [6], [3, 0, 1]]
POINT = {"window": 3, "half_life": 1, "popularity_exponent": 0.5, "symmetric": False}


def events_of(histories):
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    return rows, np.array([item for history in histories for item in history], np.int32)


def fitted():
    return Cooccurrence(*events_of(HISTORIES), NUM_ITEMS)


def scores(family, point):
    return family.baseline(point)(lambda start, stop: events_of(QUERIES[start:stop]))(0, 4)


def dense_scores(window, half_life, popularity_exponent, symmetric):
    """The definition, event by event."""
    followers, counts = np.zeros((NUM_ITEMS, NUM_ITEMS)), np.zeros(NUM_ITEMS)
    for history in HISTORIES:
        for place, i in enumerate(history):
            counts[i] += 1
            for distance, j in enumerate(history[place + 1 : place + 1 + window], start=1):
                if i and j:
                    followers[i, j] += 1 / distance
    if symmetric:
        followers = followers + followers.T / 2
    expected = np.zeros((len(QUERIES), NUM_ITEMS))
    for row, query in enumerate(QUERIES):
        for age, i in enumerate(reversed(query)):
            weights = 0.5 ** (age / half_life) / (counts[i] * counts**popularity_exponent)
            expected[row] += weights * followers[i]
    return expected


def test_counts_by_hand():
    followers = cooccurrence.count_followers(*events_of([[1, 2, 1, 0, 2]]), 3, (1, 4))
    np.testing.assert_allclose(followers[1].toarray(), [[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    after_one = 1 / 2, 1 + 1 / 4 + 1 / 2  # 1 at distance 2; 2 at distances 1, 4 and 2
    after_two = 1, 1 / 3
    expected = [[0, 0, 0], [0, *after_one], [0, *after_two]]
    np.testing.assert_allclose(followers[4].toarray(), expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("exponent", [0.0, 0.5])
@pytest.mark.parametrize("dense_items", [0, 100])
def test_scores_equal_the_definition(symmetric, exponent, dense_items, monkeypatch):
    monkeypatch.setattr(cooccurrence, "DENSE_ITEMS", dense_items)
    family = fitted()
    for window in GRID["window"]:
        for half_life in GRID["half_life"]:
            point = {
                "window": window,
                "half_life": half_life,
                "popularity_exponent": exponent,
                "symmetric": symmetric,
            }
            np.testing.assert_allclose(scores(family, point), dense_scores(**point), rtol=1e-5)


def test_blocks_of_queries_give_the_same_scores():
    scorer = fitted().baseline(POINT)(lambda start, stop: events_of(QUERIES[start:stop]))
    np.testing.assert_array_equal(np.vstack([scorer(0, 1), scorer(1, 4)]), scorer(0, 4))


def test_large_data_lose_wide_windows_first_and_then_users(monkeypatch):
    events = events_of(HISTORIES)
    assert fitted().training_share == 1
    monkeypatch.setattr(cooccurrence, "MAX_PAIRS", 10 * len(events[0]))
    family = Cooccurrence(*events, NUM_ITEMS)
    assert family.grid["window"] == (3, 10)
    monkeypatch.setattr(cooccurrence, "MAX_PAIRS", 2 * len(events[0]))
    family = Cooccurrence(*events, NUM_ITEMS)
    assert family.grid["window"] == (3,) and family.start["window"] == 3
    assert family.training_share == 6 / 16  # users 0 and 2
    assert family.followers[3][[1], [4]] == 0 and family.followers[3][[1], [2]] > 0


@pytest.mark.parametrize("dense_items", [0, 100])
def test_the_strongest_followers_are_those_of_the_similarity(dense_items, monkeypatch):
    monkeypatch.setattr(cooccurrence, "DENSE_ITEMS", dense_items)
    monkeypatch.setattr(cooccurrence, "MOST_NEIGHBOURS", 2)
    family, fit = fitted(), NeighbourFit(1.0, 0.5, strength=3.0)
    found = family.strongest(0.5).fitted(fit, np.array([True]))
    similarity = follower_similarity(
        family.followers[cooccurrence.WINDOW],
        family.counts,
        popularity_exponent=0.5,
        symmetric=False,
    )
    similarity = sparse.csr_array(similarity).toarray()
    largest = similarity.max(1)
    similarity *= 3 / largest[largest > 0].mean()
    assert found.items.shape == found.amounts.shape == (NUM_ITEMS, 2)
    for item, row in enumerate(similarity):
        np.testing.assert_allclose(found.amounts[item], np.sort(row)[::-1][:2], rtol=1e-5)
        np.testing.assert_allclose(row[found.items[item]], found.amounts[item], rtol=1e-5)
    again = family.strongest(0.5).fitted(replace(fit, strength=6.0), np.array([True]))
    np.testing.assert_allclose(again.amounts, 2 * found.amounts)


def pairs(table):
    return {(i, j) for i, row in enumerate(table.items.tolist()) for j in row if j}


def test_users_of_pairs_by_hand():
    histories = [[1, 2, 1, 2], [1, 0, 2], [2, 1], [1, 2]]
    users = cooccurrence.count_users_of_pairs(*events_of(histories), 3, window=2)
    np.testing.assert_array_equal(users.toarray(), [[0, 0, 0], [0, 1, 3], [0, 2, 1]])


def test_pairs_of_few_users_can_be_left_out():
    family = fitted()
    assert pairs(family.strongest(0.0, min_users=2)) == {(1, 2), (1, 3), (2, 3), (2, 5)}
    assert pairs(family.strongest(0.0)) > pairs(family.strongest(0.0, min_users=2))
    assert not pairs(family.strongest(0.0, min_users=3))


def test_without_two_events_of_a_user_nothing_follows():
    family = Cooccurrence(*events_of([[1], [2]]), NUM_ITEMS)
    found = family.strongest(0.0).fitted(NeighbourFit(strength=3.0), np.array([True]))
    assert not found.amounts.any()
