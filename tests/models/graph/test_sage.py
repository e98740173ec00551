import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, NODES, RELATIONS, WIDTH, features, make_graph, randomised
from helpers.messages import assert_same_values_and_gradients, dense, gather

from jaxrec.models.graph.sage import SAGELayer


def formula(layer, nodes):
    sent = nodes if layer.pool is None else jnp.maximum(dense(layer.pool, nodes), 0)
    gathered = gather(sent, layer.message, layer.aggregate)
    nodes = dense(layer.own, nodes) + dense(layer.neighbours, gathered)
    nodes = jnp.maximum(nodes, 0) if layer.activate else nodes
    length = jnp.sqrt(jnp.maximum(jnp.square(nodes).sum(1, keepdims=True), 1e-4))
    return nodes / length if layer.normalize else nodes


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max"])
@pytest.mark.parametrize("options", [{}, {"normalize": True, "activate": True}], ids=["", "paper"])
def test_sage_layer_equals_its_formula(aggregate, options):
    layer = randomised(SAGELayer(WIDTH, RELATIONS, aggregate, nnx.Rngs(0), **options))
    assert_same_values_and_gradients(layer, formula, features(), make_graph(EDGES))


def test_of_equal_messages_one_counts():
    """Nodes 0 and 2 send the same to node 3; the gradient of the maximum is not doubled."""
    layer = SAGELayer(WIDTH, RELATIONS, "max", nnx.Rngs(0))
    nodes = jnp.ones((NODES, WIDTH))
    graph = make_graph([(0, 0, 3), (2, 0, 3)])
    only = make_graph([(2, 0, 3)])
    np.testing.assert_array_equal(layer(nodes, graph)[3], layer(nodes, only)[3])
    np.testing.assert_allclose(layer(nodes, graph)[3], formula_of_two(layer, nodes), atol=1e-5)


def formula_of_two(layer, nodes):
    sent = jnp.maximum(dense(layer.pool, nodes), 0)
    return dense(layer.own, nodes)[3] + dense(layer.neighbours, sent)[0]
