from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import CONFIG, ITEMS
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph, randomised

from jaxrec.models.graph.context import NEIGHBOUR, NODE, TEXT, ContextEncoder


def make_encoder(**options) -> ContextEncoder:
    config = replace(CONFIG, context="replace", **options)
    return ContextEncoder(config, RELATIONS, nnx.Rngs(0))


def texts() -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(5).normal(size=(ITEMS, WIDTH)), jnp.float32)


def sequence(encoder, node, nodes, text):
    """The tokens of a node, one after another."""
    types, message = encoder.token_type_table[...], encoder.message
    edges = [(s, r) for s, r, receiver in sorted(EDGES, key=lambda e: e[2]) if receiver == node]
    tokens = [nodes[node] + types[NODE]]
    if text is not None and node < len(text):
        tokens.append(text[node] + types[TEXT])
    for s, r in edges[: encoder.num_neighbours]:
        tokens.append(message.scale[...][r] * nodes[s] + message.shift[...][r] + types[NEIGHBOUR])
    return jnp.stack(tokens)[None]


@pytest.mark.thorough
def test_a_vector_is_that_of_the_whole_sequence_alone():
    """All blocks over all positions of a sequence without padding, and then the first position."""
    encoder = randomised(make_encoder(context_layers=2))
    nodes, graph = jnp.asarray(features()), make_graph(EDGES, 3)
    for node, text in ((3, texts()), (5, texts()), (4, None)):
        hidden = encoder.norm(sequence(encoder, node, nodes, text))
        for block in encoder.blocks:
            hidden = block(hidden, jnp.ones((1, 1, 1, hidden.shape[1]), bool))
        expected = encoder.output(encoder.output_norm(hidden[0, 0]))
        result = encoder(nodes, graph, text)[node]
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_the_first_neighbours_in_the_order_of_the_edges_are_read():
    """Node 3 has the neighbours 0, 1 and 2; the last one is cut off."""
    nodes, graph = jnp.asarray(features()), make_graph(EDGES)
    encoder = make_encoder(context_neighbours=2)
    before = encoder(nodes, graph)
    moved = [
        bool(jnp.abs(encoder(nodes.at[sender, 0].add(1.0), graph) - before)[3].max() > 1e-4)
        for sender in (0, 1, 2)
    ]
    assert moved == [True, True, False]
