"""Permutation: renumbering the nodes of a graph only permutes their vectors."""

import jax.numpy as jnp
import numpy as np
from helpers.graph import EDGES, NODES, features, make_graph


def test_a_permuted_graph_gives_permuted_vectors(graph_encoder):
    nodes = features()
    new_number = np.random.default_rng(2).permutation(NODES)
    permuted_nodes = np.empty_like(nodes)
    permuted_nodes[new_number] = nodes
    permuted_edges = [(new_number[s], r, new_number[t]) for s, r, t in EDGES]
    permuted = graph_encoder(jnp.asarray(permuted_nodes), make_graph(permuted_edges))
    expected = graph_encoder(jnp.asarray(nodes), make_graph(EDGES))
    np.testing.assert_allclose(permuted[new_number], expected, rtol=1e-4, atol=1e-4)
