"""Log-probabilities of chosen items."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.probabilities import (
    CAPACITY,
    NUM_ITEMS,
    WIDTH,
    catalogue,
    dense_log_probabilities,
    log_probabilities,
    vectors,
)
from scipy.special import log_softmax

from jaxrec.ranking import top_k
from jaxrec.ranking.adjustments import ScoreAdjustments, as_blocks, exclude


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_change_log_probabilities(block):
    queries, items = vectors(0, 23)
    columns = np.random.default_rng(1).integers(1, NUM_ITEMS, (23, 3))

    log_p = log_probabilities(
        queries, items, columns, catalogue(), inverse_temperature=1.7, block=block
    )

    dense = dense_log_probabilities(queries, items, 1.7)
    np.testing.assert_allclose(log_p, np.take_along_axis(dense, columns, 1), rtol=1e-5, atol=1e-5)


def test_no_more_scores_exist_than_allowed(monkeypatch):
    rows = []

    def recorded(vectors, size, plain=top_k._with_one):
        rows.append(size)
        return plain(vectors, size)

    monkeypatch.setattr(top_k, "_with_one", recorded)
    monkeypatch.setattr(top_k, "MAX_BLOCK_SCORES", 8 * CAPACITY)
    queries, items = vectors(0, 23)
    columns = np.ones((23, 1), int)

    log_probabilities(queries, items, columns, catalogue(), inverse_temperature=1.0)
    log_probabilities(queries, items, columns, catalogue(), inverse_temperature=1.0, block=6)

    assert rows == [8, 8, 8, 6, 6, 6, 6]


def test_probabilities_of_all_valid_items_sum_to_one_and_others_are_zero():
    queries, items = vectors(0, 5)
    columns = np.tile(np.arange(CAPACITY), (5, 1))

    p = np.exp(log_probabilities(queries, items, columns, catalogue(), inverse_temperature=0.7))

    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert (p[:, ~catalogue()] == 0).all()


def test_a_certain_item_has_at_most_probability_one():
    random = np.random.default_rng(0)
    queries, items = 30 * random.normal(size=(200, WIDTH)), random.normal(size=(CAPACITY, WIDTH))
    best = np.argmax(np.where(catalogue(), queries @ items.T, -np.inf), axis=1)[:, None]

    log_p = log_probabilities(
        queries.astype(np.float32),
        items.astype(np.float32),
        best,
        catalogue(),
        inverse_temperature=1.3,
    )

    assert log_p.max() <= 0


def test_excluded_items_have_no_probability():
    queries, items = vectors(0, 6)
    excluded = (np.array([1, 1, 4]), np.array([1, 2, 3]))
    columns = np.tile([1, 2, 3], (6, 1))
    log_p = log_probabilities(
        queries,
        items,
        columns,
        catalogue(),
        as_blocks(exclude(*excluded)),
        inverse_temperature=1.0,
        block=2,
    )
    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    scores[excluded] = -np.inf
    np.testing.assert_allclose(log_p, log_softmax(scores, axis=1)[:, 1:4], atol=1e-4)


def test_adjustments_are_scaled_by_the_temperature():
    queries, items = vectors(0, 6)
    rows, columns = np.array([1, 1, 4]), np.array([1, 2, 3])
    amounts = np.array([2, -1, 3], np.float32)
    log_p = log_probabilities(
        queries,
        items,
        np.tile([1, 2, 3], (6, 1)),
        catalogue(),
        as_blocks(ScoreAdjustments(rows, columns, amounts)),
        inverse_temperature=0.7,
    )
    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    scores[rows, columns] += amounts
    np.testing.assert_allclose(log_p, log_softmax(0.7 * scores, axis=1)[:, 1:4], atol=1e-4)


def test_no_probability_is_left_if_every_item_is_excluded():
    queries, items = vectors(0, 1)
    everything = np.arange(CAPACITY)
    log_p = log_probabilities(
        queries,
        items,
        np.array([[1, 2]]),
        catalogue(),
        as_blocks(exclude(np.zeros_like(everything), everything)),
        inverse_temperature=1.0,
    )
    assert (log_p == -np.inf).all()


def test_vectors_in_bfloat16_are_scored_in_float32():
    queries = jnp.array([[1, 1]], jnp.bfloat16)
    items = jnp.array([[0, 0], [256, 0], [256, 1]], jnp.bfloat16)
    valid = np.array([False, True, True])

    log_p = log_probabilities(queries, items, np.array([[1, 2]]), valid, inverse_temperature=1.0)

    np.testing.assert_allclose(np.diff(log_p), [[1]], atol=1e-4)


def test_no_queries_have_no_log_probabilities():
    queries, items = vectors(0, 0)

    log_p = log_probabilities(
        queries, items, np.zeros((0, 3), int), catalogue(), inverse_temperature=1.0
    )

    assert log_p.shape == (0, 3)
