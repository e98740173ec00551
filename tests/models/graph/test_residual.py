import jax.numpy as jnp
import numpy as np
import pytest
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph, randomised
from helpers.messages import gather

from jaxrec.models.graph.residual import ResidualLayer


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_residual_layer_equals_its_formula(aggregate):
    layer = randomised(ResidualLayer(WIDTH, RELATIONS, aggregate))
    nodes = features()
    averages = gather(nodes, layer.message, "mean")
    expected = nodes + float(layer.alpha[...]) * gather(averages, layer.message, aggregate)
    np.testing.assert_allclose(layer(jnp.asarray(nodes), make_graph(EDGES)), expected, atol=1e-4)
