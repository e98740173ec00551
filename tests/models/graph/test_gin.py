import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph, randomised
from helpers.messages import gather

from jaxrec.models.graph.gin import GINLayer


def dense(linear, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_gin_layer_equals_its_formula(aggregate):
    layer = randomised(GINLayer(WIDTH, RELATIONS, aggregate, nnx.Rngs(0)))
    nodes = features()
    combined = (1 + float(layer.epsilon[...])) * nodes + gather(nodes, layer.message, aggregate)
    hidden = dense(layer.hidden, combined)
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / hidden.std(-1, keepdims=True)
    hidden = hidden * np.asarray(layer.norm.scale[...]) + np.asarray(layer.norm.bias[...])
    expected = dense(layer.output, np.maximum(hidden, 0))
    np.testing.assert_allclose(layer(jnp.asarray(nodes), make_graph(EDGES)), expected, atol=1e-4)
