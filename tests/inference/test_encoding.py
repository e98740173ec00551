import jax.numpy as jnp
import jraph
import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.encoding import (
    all_queries,
    bundled,
    make_items,
    make_log,
    make_queries,
    make_recommender,
    one_by_one,
)

from jaxrec.config import ModelConfig
from jaxrec.data.graph import build_graph
from jaxrec.inference import history_rows
from jaxrec.inference.encoding import (
    catalog_arrays,
    encode_catalog,
    encode_queries,
    encode_users,
    user_vectors,
)
from jaxrec.inference.history_rows import CHUNK, chunk_steps
from jaxrec.models.inputs import Sizes
from jaxrec.models.recommender import Recommender
from jaxrec.types import ANY_EVENT_TYPE, Catalog, Queries


@pytest.fixture(scope="module")
def recommender():
    return make_recommender()


@pytest.fixture(scope="module")
def items():
    return make_items()


@pytest.fixture(scope="module")
def log():
    return make_log()


@pytest.fixture(scope="module")
def queries(log):
    return all_queries(log)


@pytest.mark.parametrize("users", [1, 3, 64])
def test_user_vectors_do_not_depend_on_the_number_of_users_at_once(
    recommender, items, log, queries, users
):
    vectors = encode_queries(bundled(recommender), items, log, queries, users=users)
    expected = encode_queries(bundled(recommender), items, log, queries, users=2)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


@pytest.mark.parametrize("history", [1, 2, CHUNK, CHUNK + 1])
def test_history_limits_the_events_before_every_query(recommender, items, log, queries, history):
    vectors = encode_queries(bundled(recommender), items, log, queries, history=history, users=2)
    starts = np.maximum(log.offsets[queries.users], queries.positions - history)
    expected = one_by_one(recommender, items, log, queries, starts)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    everything = encode_queries(bundled(recommender), items, log, queries, users=2)
    assert np.abs(vectors - everything)[1].max() > 1e-3


def test_one_long_history_beside_short_ones(recommender, items, monkeypatch):
    """Long rows are read in narrower batches and longer chunks."""
    monkeypatch.setattr(history_rows, "LONG", 32)
    monkeypatch.setattr(history_rows, "SLOTS", 32)
    long = make_log(lengths=[70, *[3] * 12, 30])
    for users in (1, 16):
        queries = make_queries(long, [(0, 70), (0, 35), (5, 2), (5, 3), (13, 29)])
        vectors = encode_queries(bundled(recommender), items, long, queries, users=users)
        starts = long.offsets[queries.users]
        expected = one_by_one(recommender, items, long, queries, starts)
        np.testing.assert_allclose(vectors, expected, atol=1e-4)
        states = encode_users(bundled(recommender), items, long, users=users)
        every = Queries(np.arange(14), long.offsets[1:])
        ends = np.asarray(user_vectors(bundled(recommender), states, ANY_EVENT_TYPE))
        expected = one_by_one(recommender, items, long, every, long.offsets[:-1])
        np.testing.assert_allclose(ends, expected, atol=1e-4)


def test_large_states_are_read_in_longer_chunks(recommender, items, log, queries, monkeypatch):
    monkeypatch.setattr(history_rows, "LARGE", 16)
    assert [chunk_steps(size) for size in (15, 64, 10_000)] == [CHUNK, 8, 32]
    vectors = encode_queries(bundled(recommender), items, log, queries, users=2)
    expected = one_by_one(recommender, items, log, queries, log.offsets[queries.users])
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_a_user_without_events_gets_the_initial_vector(recommender, items, log):
    queries = make_queries(log, [(0, 0), (4, 0), (4, 2)])
    vectors = encode_queries(bundled(recommender), items, log, queries, users=2)
    output = recommender.last_outputs(recommender.initial_state(1))
    expected = recommender.user_vectors(output, jnp.array([ANY_EVENT_TYPE]))
    np.testing.assert_allclose(vectors[:2], np.tile(expected, (2, 1)), atol=1e-5)
    assert np.abs(vectors[2] - vectors[0]).max() > 0.01


@pytest.fixture(scope="module")
def catalog():
    table = pl.DataFrame({"item_id": [None, "a", "b", "c"], "brand": [None, "x", "x", None]})
    return Catalog(table, build_graph(table, None))


def test_catalog_arrays_are_padded_to_capacity(catalog):
    text = np.array([[0, 0], [1, 2], [3, 4], [5, 6]], np.float32)
    arrays = catalog_arrays(catalog, text, ids=np.array([0, 1, 2, 0], np.int32))
    item_capacity = catalog.graph.types[0].padded_size
    assert arrays.nodes.text.shape == (item_capacity, 2)
    np.testing.assert_array_equal(arrays.nodes.text[:4], text)
    assert not arrays.nodes.text[4:].any()
    np.testing.assert_array_equal(np.flatnonzero(arrays.valid), [1, 2, 3])
    assert len(arrays.valid) == item_capacity


def test_untrained_items_have_the_unknown_id(catalog):
    ids = np.array([0, 1, 2, 0], np.int32)
    arrays = catalog_arrays(catalog, np.zeros((4, 1), np.float32), ids)
    np.testing.assert_array_equal(arrays.nodes.items[:5], [0, 1, 2, 0, 0])
    entities = catalog.graph.num_nodes - len(arrays.nodes.items)
    np.testing.assert_array_equal(arrays.nodes.entities, np.arange(entities))


def test_encode_catalog_gives_every_node_a_vector(catalog):
    graph = catalog.graph
    sizes = Sizes(graph.types[0].padded_size, graph.num_nodes, len(graph.relations), 1, 1)
    recommender = Recommender(ModelConfig(hidden_size=4, num_layers=1), sizes, nnx.Rngs(0))
    arrays = catalog_arrays(catalog, np.ones((4, 1), np.float32), np.arange(4, dtype=np.int32))
    assert isinstance(arrays.graph, jraph.GraphsTuple)
    vectors = np.asarray(encode_catalog(bundled(recommender), arrays))
    assert vectors.shape == (graph.num_nodes, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors[:4], axis=1), np.full(4, 2**0.5), rtol=1e-4)
    brand = graph.types[1]
    assert np.abs(vectors[brand.offset + 1]).max() > 0.1
