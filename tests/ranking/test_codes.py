"""Lists that codes search equal those of exact vectors."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ranking import catalogue, from_mask

from jaxrec.ranking.codes import BLOCK, CodedRows, coded_scores, encode_rows
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.top_k import best_items
from jaxrec.sharding import make_mesh


def table(items, width=16, seed=0):
    random = np.random.default_rng(seed)
    return ItemTable(
        random.normal(size=(items, width)).astype(np.float32),
        catalogue(items - 3, items),
        random.normal(size=items).astype(np.float32),
    )


def coded(exact):
    return replace(exact, codes=encode_rows(exact.vectors))


def queries(count, width=16):
    return np.random.default_rng(1).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("items", [40, BLOCK, BLOCK + 10])
def test_coded_scores_are_off_by_half_a_step_of_every_number_at_most(items):
    exact, own = table(items), queries(3)
    codes, scales = encode_rows(exact.vectors)
    scores = coded_scores(jnp.asarray(own), CodedRows(codes, scales, jnp.asarray(exact.bias)))
    bound = np.abs(own).sum(1, keepdims=True) * scales / 2 + 1e-4
    assert np.all(np.abs(scores - (own @ exact.vectors.T + exact.bias)) <= bound)


@pytest.mark.parametrize("item_shards", [1, 2])
def test_lists_and_scores_equal_exact_ones(item_shards):
    exact, own = table(1024), queries(5)
    excluded = np.random.default_rng(2).random((5, 1024)) < 0.3
    coded_lists, exact_lists = (
        best_items(own, prepare(items, make_mesh(item_shards)), 10, from_mask(excluded))
        for items in (coded(exact), exact)
    )
    np.testing.assert_array_equal(coded_lists.items, exact_lists.items)
    np.testing.assert_allclose(coded_lists.scores, exact_lists.scores, rtol=1e-5, atol=1e-5)


def test_equal_items_come_in_their_order_and_missing_ones_last():
    vectors = np.ones((8, 2), np.float32)
    own = np.ones((1, 2), np.float32)
    top = best_items(own, coded(ItemTable(vectors, catalogue(5, 8))), 6)
    np.testing.assert_array_equal(top.items, [[1, 2, 3, 4, 0, 0]])
    np.testing.assert_allclose(top.scores, [[2, 2, 2, 2, -np.inf, -np.inf]], rtol=1e-6)


def test_vectors_of_zeros_and_of_huge_numbers_have_codes():
    vectors = np.array([[0, 0], [1e30, -1e30], [1e-30, 0]], np.float32)
    codes, scales = encode_rows(vectors)
    np.testing.assert_allclose(codes * scales[:, None], vectors, rtol=1e-6)
