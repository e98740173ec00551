"""A ranking whose items have changed equals one that is prepared afresh."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from jaxrec.data.graph import build_graph
from jaxrec.ranking.adjustments import no_adjustments
from jaxrec.ranking.codes import encode_rows
from jaxrec.ranking.item_table import CHANGED_ROWS, ItemTable
from jaxrec.ranking.pipeline import Reranker, RerankQueries, build_pipeline
from jaxrec.ranking.steps import Boost, Caps, Explore, Popularity, Where, Without
from jaxrec.types import Catalog

ITEMS, WIDTH = 700, 5
STEPS = (
    Where("price < 400"),
    Without(["i3"]),
    Boost("brand = 'b1'", 0.7),
    Popularity(0.3),
    Caps({"brand": 4}),
    Explore(0.2, events=3),
)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("changes", [1, CHANGED_ROWS + 9])
def test_changed_rows_equal_a_new_ranking(coded, changes):
    random = np.random.default_rng(0)
    ids = range(1, ITEMS)
    table = pl.DataFrame(
        {
            "item_id": [None, *(f"i{item}" for item in ids)],
            "brand": [None, *(f"b{item % 5}" for item in ids)],
            "price": [None, *map(float, ids)],
        }
    )
    catalog = Catalog(table, build_graph(table, None))
    valid = catalog.graph.types[0].valid.copy()
    counts = random.integers(0, 9, len(valid)).astype(np.float32)
    vectors = random.normal(size=(len(valid), WIDTH)).astype(np.float32)
    bias = random.normal(size=len(valid)).astype(np.float32)
    codes = encode_rows(vectors) if coded else None
    items = ItemTable(vectors, valid, bias, codes)
    pipeline = build_pipeline(STEPS, catalog, counts, valid)
    before = Reranker(pipeline, items)
    queries = RerankQueries(random.normal(size=(3, WIDTH)).astype(np.float32), nothing)
    before.rank(queries, 8)

    rows = random.permutation(np.arange(1, ITEMS))[:changes]
    items.write(rows, random.normal(size=(changes, WIDTH)).astype(np.float32))
    valid[rows[::3]] = False
    prices = table["price"].to_numpy().copy()
    prices[rows] = random.uniform(0, 800, changes)
    changed = table.with_columns(pl.Series("price", prices))
    after = before.with_rows(before.pipeline.with_items(changed, rows, valid[rows]), rows)
    fresh_pipeline = build_pipeline(STEPS, replace(catalog, items=changed), counts, valid)
    # the correction for popularity keeps the mean of the catalogue before the change
    allowed = np.isfinite(fresh_pipeline.bias)
    np.testing.assert_array_equal(allowed, np.isfinite(after.pipeline.bias))
    shift = fresh_pipeline.bias[allowed] - after.pipeline.bias[allowed]
    assert np.ptp(shift) < 1e-5
    fresh = Reranker(fresh_pipeline, replace(items, vectors=vectors.copy()))
    expected, result = fresh.rank(queries, 8).lists, after.rank(queries, 8).lists
    np.testing.assert_array_equal(result.items, expected.items)
    np.testing.assert_array_equal(result.touched, expected.touched)


def nothing(rows):
    return no_adjustments
