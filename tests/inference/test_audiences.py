import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax

from jaxrec.data.graph import build_graph
from jaxrec.inference.audiences import (
    EMPTY_AUDIENCE,
    audience_table,
    choice_log_probability,
    entity_items,
    likeliest,
)
from jaxrec.ranking.adjustments import as_blocks, exclude
from jaxrec.ranking.item_table import ItemTable


@pytest.fixture(scope="module")
def graph():
    items = pl.DataFrame(
        {
            "item_id": [None, "a", "b", "c", "d"],
            "brand": [None, "x", "x", "y", None],
            "categories": [None, ["Care", "Hair"], ["Care", "Hair", "Dye"], ["Care"], ["Food"]],
        }
    )
    return build_graph(items, None)


def members(graph, type_name, identity):
    node_type = graph.type(type_name)
    local = node_type.ids.to_list().index(identity)
    return entity_items(graph, node_type.offset + local).tolist()


def test_the_items_of_an_entity_are_its_descendants(graph):
    assert members(graph, "item", "b") == [2]
    assert members(graph, "brand", "x") == [1, 2]
    assert members(graph, "category", "Care > Hair > Dye") == [2]
    assert members(graph, "category", "Care > Hair") == [1, 2]
    assert members(graph, "category", "Care") == [1, 2, 3]
    assert members(graph, "category", "Food") == [4]


def test_edges_count_in_either_direction():
    items = pl.DataFrame({"item_id": [None, "a", "b"]})
    triple = ("actor", "x", "acts_in", "item", "b")
    names = ("head_type", "head", "relation", "tail_type", "tail")
    graph = build_graph(items, pl.DataFrame([triple], schema=names, orient="row"))
    assert members(graph, "actor", "x") == [2]


def test_the_probability_of_an_entity_is_the_sum_over_its_items():
    random = np.random.default_rng(0)
    users, items = random.normal(size=(5, 3)), random.normal(size=(9, 3))
    users, items = users.astype(np.float32), items.astype(np.float32)
    valid = (np.arange(9) > 0) & (np.arange(9) < 7)
    chosen = np.array([1, 4, 6])
    excluded = random.random((5, 9)) < 0.3
    excluded[2, chosen] = True
    pairs = as_blocks(exclude(*np.nonzero(excluded)))
    result = choice_log_probability(users, ItemTable(items, valid), chosen, pairs, 0.8)
    log_p = log_softmax(np.where(valid & ~excluded, 0.8 * users @ items.T, -np.inf), axis=1)
    expected = np.exp(log_p[:, chosen]).sum(1)
    np.testing.assert_allclose(np.exp(result), expected, rtol=1e-4)
    assert result[2] == -np.inf


@pytest.mark.parametrize("size", [1, 4, 30])
def test_an_audience_does_not_depend_on_blocks_of_users(size):
    random = np.random.default_rng(0)
    log_p = random.integers(-5, 0, 20).astype(np.float32)
    log_p[3] = -np.inf
    ids = pl.Series([f"u{user}" for user in range(20)])
    audience = EMPTY_AUDIENCE
    for start in range(0, 20, 7):
        audience = likeliest(audience, ids[start : start + 7], log_p[start : start + 7], size)
    order = [u for u in np.argsort(-log_p, kind="stable") if log_p[u] > -np.inf][:size]
    assert audience["user_id"].to_list() == [f"u{user}" for user in order]
    np.testing.assert_array_equal(audience["log_p"], log_p[order])


def test_a_bid_gives_the_revenue_of_a_thousand_impressions():
    audience = likeliest(EMPTY_AUDIENCE, pl.Series(["u", "v"]), np.log(np.array([0.1, 0.4])), 5)
    table = audience_table(audience, bid=0.5)
    assert table["user_id"].to_list() == ["v", "u"]
    np.testing.assert_allclose(table["ecpm"], [200, 50])
    assert audience_table(EMPTY_AUDIENCE, None).is_empty()
