import pytest
from helpers.encoders import values_of

from jaxrec.config import Config, ModelConfig
from jaxrec.training.estimate import graph_products, train_bytes


@pytest.mark.parametrize("layer", values_of("graph_layer"))
def test_every_graph_layer_and_what_is_added_to_it_cost_more(layer):
    one, two = (ModelConfig(graph_layer=layer, num_graph_layers=n) for n in (1, 2))
    assert graph_products(two) == 2 * graph_products(one)
    context = ModelConfig(graph_layer=layer, context="after")
    more = ModelConfig(graph_layer=layer, context="after", context_neighbours=9)
    assert graph_products(one) < graph_products(context) < graph_products(more)


def test_vectors_take_memory_as_given_and_whitened():
    sizes = (Config(), 256_000, 1000)
    more = train_bytes(*sizes, {"image": 512, "audio": 8}) - train_bytes(*sizes)
    assert more == 256_000 * 4 * (2 * 512 + 193 + 2 * 8 + 9)
