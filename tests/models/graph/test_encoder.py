import jax.numpy as jnp
import numpy as np
from helpers.graph import EDGES, NODES, WIDTH, features, make_graph


def test_encoder_sums_the_outputs_of_its_layers(encoder):
    graph, nodes = make_graph(EDGES), jnp.asarray(features())
    first = encoder.layers[0](nodes, graph)
    expected = first + encoder.layers[1](first, graph)
    np.testing.assert_allclose(encoder(nodes, graph), expected, rtol=1e-5)


def test_every_entity_gets_a_vector_from_its_neighbours(encoder):
    """Node 3 has no features of its own. Its neighbours are 0 to 2, and 4 is two steps away."""
    graph = make_graph(EDGES)
    nodes = jnp.asarray(features()).at[3].set(0)
    vectors = encoder(nodes, graph)
    assert vectors.shape == (NODES, WIDTH)
    assert (jnp.linalg.norm(vectors, axis=1) > 0.01).all()
    moved = jnp.abs(encoder(nodes.at[jnp.array([0, 4])].add(0.5), graph) - vectors).max(1) > 1e-4
    assert moved[3] and not moved[5]
