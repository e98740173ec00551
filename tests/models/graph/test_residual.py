import pytest
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph, randomised
from helpers.messages import assert_same_values_and_gradients, gather

from jaxrec.models.graph.residual import ResidualLayer


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_residual_layer_equals_its_formula(aggregate):
    def formula(layer, nodes):
        averages = gather(nodes, layer.message, "mean")
        return nodes + layer.alpha[...] * gather(averages, layer.message, aggregate)

    layer = randomised(ResidualLayer(WIDTH, RELATIONS, aggregate))
    assert_same_values_and_gradients(layer, formula, features(), make_graph(EDGES))
