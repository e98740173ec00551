"""Predicted edges are hidden with everything that would reveal them."""

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.encoders import GRAPH_ENCODERS

from jaxrec.config import ModelConfig
from jaxrec.data.graph import build_graph
from jaxrec.data.graph_arrays import graphs_tuple
from jaxrec.models.graph.link_sampling import CANDIDATES, link_sampler
from jaxrec.models.graph.sampling import edge_sampler
from jaxrec.models.inputs import Nodes, Sizes
from jaxrec.models.recommender import Recommender

ITEMS = 400


@pytest.fixture(scope="module")
def graph():
    """400 items of 20 brands; every item was bought with the next one, which is told twice."""
    items = pl.DataFrame({"item_id": [None, *(f"i{n}" for n in range(ITEMS))]})
    brands = [f"b{n % 20}" for n in range(ITEMS)]
    following = [f"i{(n + 1) % ITEMS}" for n in range(ITEMS)]
    ids = items["item_id"][1:].to_list()
    triples = pl.DataFrame(
        {
            "head_type": ["item"] * 3 * ITEMS,
            "head": [*ids, *ids, *following],
            "relation": ["has_brand"] * ITEMS + ["also_bought"] * ITEMS + ["also_viewed"] * ITEMS,
            "tail_type": ["brand"] * ITEMS + ["item"] * 2 * ITEMS,
            "tail": [*brands, *following, *ids],
        }
    )
    return build_graph(items, triples)


@pytest.fixture(scope="module")
def messages(graph):
    return jax.tree.map(jnp.asarray, graphs_tuple(graph))


@pytest.fixture(scope="module")
def sampler(graph, messages):
    return link_sampler(graph, messages, seed=0)


def pairs_of(heads, tails):
    return {
        frozenset(pair) for pair in zip(np.asarray(heads).tolist(), tails.tolist(), strict=True)
    }


def test_no_message_passes_between_the_ends_of_a_predicted_or_held_out_edge(
    graph, messages, sampler
):
    links = sampler.sample(jax.random.key(0))
    visible = sampler.visible(messages, links.hidden)
    real = int(messages.n_edge[0])
    shown = np.asarray(visible.edges.weights)[:real] > 0
    senders, receivers = (np.asarray(a)[:real] for a in (messages.senders, messages.receivers))
    predicted = pairs_of(links.heads, links.tails)
    assert not predicted & pairs_of(senders[shown], receivers[shown])
    held_out = np.flatnonzero(sampler.held_out)
    hidden_ends = pairs_of(senders[~shown], receivers[~shown])
    assert len(held_out) == 12
    assert len(hidden_ends) == len(predicted) + len(held_out)
    assert len(links.heads) == len(sampler.heads) // 10


def test_drawn_edges_exist_in_the_direction_of_their_relation(messages, sampler):
    links = sampler.sample(jax.random.key(1))
    # a message goes from its sender along the relation to its receiver
    edges = (messages.senders, messages.edges, messages.receivers)
    known = set(zip(*(np.asarray(a).tolist() for a in edges), strict=True))
    drawn = (np.asarray(a).tolist() for a in (links.heads, links.relations, links.tails))
    assert set(zip(*drawn, strict=True)) <= known


def test_candidates_are_the_nodes_of_each_type(graph, sampler):
    links = sampler.sample(jax.random.key(2))
    items, brands = graph.types
    types, candidates = np.asarray(links.candidate_types), np.asarray(links.candidates)
    assert sorted(candidates[types == 1] - brands.offset) == list(range(1, 21))
    of_items = candidates[types == 0]
    assert len(of_items) == CANDIDATES and items.valid[of_items].all()


@pytest.mark.parametrize("name", GRAPH_ENCODERS)
def test_a_hidden_edge_changes_no_vector(name, graph, messages, sampler):
    """The vectors equal those of a graph without the edges."""
    options = {"experts": ("id+graph",), "hidden_size": 4, "graph_heads": 2}
    options["context_neighbours"] = 32  # all of a brand: hidden ones take up places too
    config = ModelConfig(**options | GRAPH_ENCODERS[name])
    sizes = Sizes(graph.types[0].padded_size, graph.num_nodes, len(graph.relations), 1, 1)
    expert = Recommender(config, sizes, nnx.Rngs(0)).experts[0]
    links = sampler.sample(jax.random.key(3))
    visible = sampler.visible(messages, links.hidden)
    shown = np.flatnonzero(np.asarray(visible.edges.weights) > 0)
    without = messages._replace(
        edges=messages.edges[shown],
        senders=messages.senders[shown],
        receivers=messages.receivers[shown],
    )
    nodes = Nodes(
        jnp.arange(sizes.num_items),
        jnp.arange(sizes.num_nodes - sizes.num_items),
        jnp.zeros((sizes.num_items, 1)),
    )
    encode = nnx.jit(lambda expert, graph: expert.encode_nodes(nodes, graph))
    np.testing.assert_allclose(encode(expert, visible), encode(expert, without), atol=1e-5)


def test_sampled_edges_stay_hidden(messages, sampler):
    links = sampler.sample(jax.random.key(4))
    visible = sampler.visible(messages, links.hidden)
    drawn = edge_sampler(messages, 2, 0).sample(visible, jax.random.key(5))
    shown = np.asarray(drawn.edges.weights) > 0
    ends = pairs_of(drawn.senders[shown], drawn.receivers[shown])
    assert shown.any() and not shown.all()
    assert not ends & pairs_of(links.heads, links.tails)
