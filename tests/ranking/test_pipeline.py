import numpy as np
import polars as pl
import pytest

from jaxrec.data.graph import build_graph
from jaxrec.ranking.adjustments import exclude, no_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.pipeline import Reranker, RerankQueries, build_pipeline
from jaxrec.ranking.strategy import Rules, steps_of
from jaxrec.types import Catalog

ITEMS = 40
QUERIES, WIDTH = 6, 5


@pytest.fixture(scope="module")
def catalog():
    table = pl.DataFrame(
        {
            "item_id": [None, *(f"i{item}" for item in range(1, ITEMS))],
            "brand": [None, *(f"b{item % 3}" for item in range(1, ITEMS - 4)), *[None] * 4],
            "price": [None, *range(1, ITEMS)],
        }
    )
    return Catalog(table, build_graph(table, None))


@pytest.fixture(scope="module")
def valid(catalog):
    rows = np.arange(catalog.graph.types[0].padded_size)
    return (rows > 0) & (rows < ITEMS)


@pytest.fixture(scope="module")
def vectors(valid):
    random = np.random.default_rng(0)
    return random.normal(size=(QUERIES, WIDTH)).astype(np.float32), random.normal(
        size=(len(valid), WIDTH)
    ).astype(np.float32)


def nothing(rows):
    return no_adjustments


def lists(catalog, valid, vectors, k=8, excluded=nothing, counts=None, prior=None, **rules):
    counts = np.arange(ITEMS, dtype=np.float32) if counts is None else counts
    pipeline = build_pipeline(steps_of(Rules(**rules)), catalog, counts, valid)
    queries, items = vectors
    reranker = Reranker(pipeline, ItemTable(items, valid, prior))
    return pipeline, reranker.rank(RerankQueries(queries, excluded), k)


def ordered(vectors, valid, bias=0.0):
    scores = np.where(valid, vectors[0] @ vectors[1].T + bias, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")


def test_without_rules_the_best_are_listed(catalog, valid, vectors):
    _, result = lists(catalog, valid, vectors)
    np.testing.assert_array_equal(result.lists.items, ordered(vectors, valid)[:, :8])
    assert result.removed == {}


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_caps_fetch_more_items_until_the_lists_are_full(catalog, valid, vectors, limit):
    """Three brands leave room for 3 limit items, and four items have no brand."""
    k = min(8, 3 * limit + 4)
    _, result = lists(catalog, valid, vectors, k=k, caps={"brand": limit})
    for row, order in zip(result.lists.items, ordered(vectors, valid), strict=True):
        expected, taken = [], {}
        for item in order:
            brand = catalog.items["brand"][int(item)] if item < ITEMS and item else None
            if not 0 < item < ITEMS or (brand and taken.get(brand, 0) == limit):
                continue
            taken[brand] = taken.get(brand, 0) + 1
            expected.append(item)
        assert row.tolist() == expected[:k]
    assert (result.removed["caps"] > 0) == (limit < 5)


def test_lists_shortened_by_caps_stay_short(catalog, valid, vectors):
    _, result = lists(catalog, valid, vectors, k=20, caps={"brand": 1})
    np.testing.assert_array_equal((result.lists.items > 0).sum(1), np.full(QUERIES, 7))
    assert not np.isfinite(result.lists.scores[:, 7:]).any()


def test_exclusions_follow_their_queries_when_more_items_are_fetched(catalog, valid, vectors):
    """Only some of the queries are fetched again, so that their numbers change."""
    banned = ordered(vectors, valid)[:, :3]

    def excluded(rows):
        return lambda start, stop: exclude(
            np.repeat(np.arange(stop - start), 3), banned[rows[start:stop]].ravel()
        )

    _, result = lists(catalog, valid, vectors, k=6, excluded=excluded, caps={"brand": 1})
    for row, out in zip(result.lists.items, banned, strict=True):
        assert not set(row) & set(out)
        assert (row > 0).sum() >= 4


def test_filters_and_lists_of_ids_are_counted(catalog, valid, vectors):
    selection, result = lists(
        catalog, valid, vectors, where="price <= 20", only=("i5", "i6", "i30"), without=("i6",)
    )
    assert set(result.lists.items[result.lists.items > 0]) == {5}
    assert selection.removed == {"where": 19, "only": 36, "without": 1}


def test_the_popularity_correction_reorders(catalog, valid, vectors):
    counts = np.arange(ITEMS, dtype=np.float32)
    _, result = lists(catalog, valid, vectors, popularity=0.7, counts=counts)
    bias = np.zeros(len(valid))
    bias[:ITEMS] = -0.7 * np.log((counts + 1) / (counts + 1).mean())
    np.testing.assert_array_equal(result.lists.items, ordered(vectors, valid, bias)[:, :8])


def test_diversity_chooses_from_the_pool(catalog, valid, vectors):
    _, result = lists(catalog, valid, vectors, diversity=0.8, pool=12)
    pool = ordered(vectors, valid)[:, :12]
    assert all(set(row) <= set(best) for row, best in zip(result.lists.items, pool, strict=True))
    np.testing.assert_array_equal(result.lists.items[:, 0], pool[:, 0])
    kept = [
        len(set(row) & set(best[:8])) for row, best in zip(result.lists.items, pool, strict=True)
    ]
    assert result.removed["diversity"] == sum(8 - count for count in kept) > 0


def test_a_constant_bias_changes_no_order_and_no_similarity(catalog, valid, vectors):
    """One bias for all items changes no order and no similarity."""
    _, plain = lists(catalog, valid, vectors, diversity=0.8, pool=12)
    prior = np.full(len(valid), 9, np.float32)
    _, result = lists(catalog, valid, vectors, prior=prior, diversity=0.8, pool=12)
    np.testing.assert_array_equal(result.lists.items, plain.lists.items)


def test_exploration_gives_new_items_their_share(catalog, valid, vectors):
    counts = np.full(ITEMS, 9, np.float32)
    counts[1:5] = 1
    _, result = lists(catalog, valid, vectors, k=6, explore=0.4, explore_events=1, counts=counts)
    new = np.isin(result.lists.items, np.arange(1, 5)).sum(1)
    assert (new >= 2).all()
    assert all(len(set(row)) == 6 for row in result.lists.items)


def test_a_cap_on_an_unknown_type_lists_the_types(catalog, valid, vectors):
    with pytest.raises(ValueError, match="no node type 'shop' in the graph; it has item, brand"):
        lists(catalog, valid, vectors, caps={"shop": 1})
