import numpy as np
import pytest
from scipy.special import softmax

from jaxrec.inference.profiles import strongest, weights_over_time
from jaxrec.ranking.adjustments import as_blocks, exclude
from jaxrec.ranking.item_table import ItemTable

SCALE = 1.5
VALID = (np.arange(8) > 0) & (np.arange(8) < 6)


def vectors(seed, count):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_weights_are_shares_of_the_valid_nodes_now_and_before():
    now, before, nodes = vectors(0, 7), vectors(1, 7), vectors(2, 8)
    rows, weights, weights_before = strongest(now, before, ItemTable(nodes, VALID), 3, SCALE)
    shares = [
        softmax(np.where(VALID, SCALE * moment @ nodes.T, -np.inf), axis=1)
        for moment in (now, before)
    ]
    expected = np.argsort(-shares[0], axis=1)[:, :3]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(weights, np.take_along_axis(shares[0], rows, 1), atol=1e-5)
    np.testing.assert_allclose(weights_before, np.take_along_axis(shares[1], rows, 1), atol=1e-5)


def test_excluded_nodes_have_no_share():
    now, before, nodes = vectors(0, 2), vectors(1, 2), vectors(2, 8)
    out = np.zeros((2, 8), bool)
    out[0, [1, 4]], out[1, 1:] = True, True
    rows, weights, weights_before = strongest(
        now, before, ItemTable(nodes, VALID), 3, SCALE, as_blocks(exclude(*np.nonzero(out)))
    )
    shares = softmax(np.where(VALID & ~out[0], SCALE * now[0] @ nodes.T, -np.inf))
    assert set(rows[0]) == {2, 3, 5} and not rows[1].any()
    np.testing.assert_allclose(weights[0], shares[rows[0]], atol=1e-5)
    assert not weights[1].any() and weights_before[0].sum() == pytest.approx(1, abs=1e-5)


def test_no_more_nodes_than_there_are():
    nodes = ItemTable(vectors(2, 8), VALID)
    rows, weights, _ = strongest(vectors(0, 2), vectors(1, 2), nodes, 99, SCALE)
    assert rows.shape == (2, 5)
    np.testing.assert_allclose(weights.sum(1), [1, 1], atol=1e-5)


def test_the_nodes_of_a_plot_are_those_that_weigh_most_over_all_moments():
    moments, nodes = vectors(0, 6), vectors(2, 8)
    rows, weights = weights_over_time(moments, ItemTable(nodes, VALID), 2, SCALE)
    shares = softmax(np.where(VALID, SCALE * (moments @ nodes.T), -np.inf), axis=1)
    np.testing.assert_array_equal(rows, np.argsort(-shares.sum(0))[:2])
    np.testing.assert_allclose(weights, shares[:, rows], atol=1e-6)
