import jax.numpy as jnp
import pytest
from flax import nnx
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph, randomised
from helpers.messages import assert_same_values_and_gradients, dense, gather, layer_norm

from jaxrec.models.graph.gin import GINLayer


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_gin_layer_equals_its_formula(aggregate):
    def formula(layer, nodes):
        combined = (1 + layer.epsilon[...]) * nodes + gather(nodes, layer.message, aggregate)
        hidden = layer_norm(layer.norm, dense(layer.hidden, combined))
        return dense(layer.output, jnp.maximum(hidden, 0))

    layer = randomised(GINLayer(WIDTH, RELATIONS, aggregate, nnx.Rngs(0)))
    assert_same_values_and_gradients(layer, formula, features(), make_graph(EDGES))
