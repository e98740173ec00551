"""The vectors of some nodes, from the part of the graph around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.encoders import LAYERS, make_graph_encoder
from helpers.graph import EDGES, NODES, features, make_graph

from jaxrec.models.graph.message_passing import WeightedEdges
from jaxrec.models.graph.neighbourhoods import Counts, distinct, neighbourhood_sampler
from jaxrec.models.graph.sampling import edge_sampler

ITEMS = 3  # nodes 0 to 2; node 5 has no edges, and node 6 has the padding edges
KEY = jax.random.key(0)


def make_samplers(graph, fan_out, hops, start):
    edges = edge_sampler(graph, fan_out, seed=0)
    return edges, neighbourhood_sampler(
        graph,
        edges,
        entities=np.zeros(0, int),
        num_items=ITEMS,
        num_nodes=NODES,
        hops=hops,
        start=start,
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", LAYERS)
def test_with_all_edges_the_vectors_are_those_of_the_whole_graph(name):
    encoder, graph, nodes = make_graph_encoder(name), make_graph(EDGES, 4), jnp.asarray(features())
    whole = encoder(nodes, graph)
    edges, sampler = make_samplers(graph, 9, 4, Counts(1, 1))
    for item, entity in ((1, 3), (0, 5), (1, 4)):
        part = sampler.sample(graph, edges, jnp.array([item]), jnp.array([entity]), KEY)
        local = encoder(nodes[jnp.concatenate([part.items, part.entities])], part.graph)
        wanted = jnp.array([item, entity])
        places = sampler.places(part.items, part.entities, wanted)
        np.testing.assert_allclose(local[places], whole[wanted], atol=1e-4)


@pytest.mark.thorough
def test_only_nodes_within_reach_are_encoded():
    """Item 2 has no incoming edges; entity 4 reads the items 0 and 1, and 0 reads entity 3."""
    graph = make_graph(EDGES, 4)
    for hops, items in ((1, [0, 1]), (2, [0, 1])):
        edges, sampler = make_samplers(graph, 9, hops, Counts(1, 1))
        part = sampler.sample(graph, edges, jnp.array([1]), jnp.array([4]), KEY)
        assert sorted({*np.asarray(part.items)} - {ITEMS - 1}) == items
        assert {3, 4} <= {*np.asarray(part.entities)} <= {3, 4, 6}


@pytest.mark.thorough
def test_weights_make_up_for_edges_that_are_not_drawn():
    """A node gets the same edges beside any others, and hidden edges stay hidden."""
    graph = make_graph([*EDGES, *[(s, 0, 5) for s in (0, 1, 2, 3, 4)]], 4)
    of_edges, sampler = make_samplers(graph, 2, 1, Counts(1, 2))
    drawn = set()
    for number in range(20):
        key = jax.random.key(number)
        edges, weights = sampler.draw(of_edges, jnp.array([5, 2]), key)
        np.testing.assert_allclose(weights.sum(1), [5, 0])
        again, _ = sampler.draw(of_edges, jnp.array([0, 1, 5]), key)
        np.testing.assert_array_equal(again[2], edges[0])
        drawn |= {*np.asarray(edges[0][weights[0] > 0])}
    assert len(drawn) == 5
    hidden = graph._replace(edges=WeightedEdges(graph.edges, jnp.zeros(len(graph.edges))))
    part = sampler.sample(hidden, of_edges, jnp.array([0]), jnp.array([4, 5]), KEY)
    assert not part.graph.edges.weights.any()


def test_distinct_values_are_sorted_and_filled_up():
    np.testing.assert_array_equal(distinct(jnp.array([5, 0, 5, 2]), 5, 7), [0, 2, 5, 7, 7])
    assert distinct(jnp.array([5]), 0, 7).shape == (0,)
