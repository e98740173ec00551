"""Graph encoders of every layer."""

import pytest
from flax import nnx
from helpers.graph import WIDTH, randomised

from jaxrec.config import ModelConfig
from jaxrec.models.graph.build import build_graph_encoder


@pytest.fixture(params=["gin", "residual"])
def encoder(request):
    config = ModelConfig(hidden_size=WIDTH, graph_layer=request.param, num_graph_layers=2)
    return randomised(build_graph_encoder(config, num_relations=1, rngs=nnx.Rngs(0)))
