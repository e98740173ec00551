"""Graph encoders of every layer."""

import pytest
from helpers.encoders import GRAPH_ENCODERS, LAYERS, make_graph_encoder


@pytest.fixture(params=LAYERS)
def encoder(request):
    return make_graph_encoder(request.param)


@pytest.fixture(params=GRAPH_ENCODERS)
def graph_encoder(request):
    return make_graph_encoder(request.param)
