import jax.numpy as jnp
import numpy as np
from helpers.graph import EDGES, NODES, WIDTH, features, make_graph


def test_encoder_sums_the_outputs_of_its_layers(encoder):
    graph, nodes = make_graph(EDGES), jnp.asarray(features())
    outputs = [nodes]
    for layer in encoder.layers:
        outputs.append(layer(outputs[-1], graph))
    np.testing.assert_allclose(encoder(nodes, graph), sum(outputs[1:]), rtol=1e-5)


def test_every_entity_gets_a_vector_from_its_neighbours(graph_encoder):
    """Node 3 has no features of its own. Its neighbours are 0 to 2, and 4 is two steps away."""
    graph = make_graph(EDGES)
    nodes = jnp.asarray(features()).at[3].set(0)
    vectors = graph_encoder(nodes, graph)
    assert vectors.shape == (NODES, WIDTH)
    assert (jnp.linalg.norm(vectors, axis=1) > 0.01).all()
    changed = graph_encoder(nodes.at[jnp.array([0, 4])].multiply(-1), graph)
    moved = jnp.abs(changed - vectors).max(1) > 1e-4
    assert moved[3] and not moved[5]
