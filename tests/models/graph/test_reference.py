"""Layers equal those of an independent library on a graph with one relation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph, randomised
from jraphx.nn.conv import GINConv, SAGEConv, TransformerConv

from jaxrec.models.graph.gin import GINLayer
from jaxrec.models.graph.message_passing import RelationMessage
from jaxrec.models.graph.sage import SAGELayer
from jaxrec.models.graph.transformer import GraphTransformerLayer

PAIRS = jnp.array([[sender, receiver] for sender, _, receiver in EDGES]).T
GRAPH = make_graph([(sender, 0, receiver) for sender, _, receiver in EDGES])


def homogeneous(layer):
    """A layer with random parameters, whose neighbours send their vectors unchanged."""
    for _, module in nnx.iter_modules(randomised(layer)):
        if isinstance(module, RelationMessage):
            module.scale[...] = jnp.ones_like(module.scale[...])
            module.shift[...] = jnp.zeros_like(module.shift[...])
    return layer


def test_gin():
    layer = homogeneous(GINLayer(WIDTH, RELATIONS, "sum", nnx.Rngs(0)))
    mlp = nnx.Sequential(layer.hidden, layer.norm, nnx.relu, layer.output)
    reference = GINConv(mlp, eps=float(layer.epsilon[...]))
    nodes = jnp.asarray(features())
    np.testing.assert_allclose(layer(nodes, GRAPH), reference(nodes, PAIRS), rtol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_sage(normalize):
    layer = homogeneous(SAGELayer(WIDTH, RELATIONS, "mean", nnx.Rngs(0), normalize=normalize))
    reference = SAGEConv(WIDTH, WIDTH, aggr="mean", normalize=normalize, rngs=nnx.Rngs(0))
    reference.lin, reference.lin_r = layer.neighbours, layer.own
    nodes = jnp.asarray(features())
    np.testing.assert_allclose(layer(nodes, GRAPH), reference(nodes, PAIRS), rtol=1e-4, atol=1e-6)


def test_attention():
    layer = homogeneous(GraphTransformerLayer(WIDTH, RELATIONS, 2, nnx.Rngs(0)))
    layer.mlp.down.kernel[...] = jnp.zeros_like(layer.mlp.down.kernel[...])
    layer.mlp.down.bias[...] = jnp.zeros_like(layer.mlp.down.bias[...])
    reference = TransformerConv(WIDTH, WIDTH // 2, heads=2, root_weight=False, rngs=nnx.Rngs(0))
    projections = (layer.query, layer.key, layer.value)
    reference.lin_qkv.kernel[...] = jnp.concatenate([p.kernel[...] for p in projections], 1)
    reference.lin_qkv.bias[...] = jnp.concatenate([p.bias[...] for p in projections])
    nodes = jnp.asarray(features())
    expected = nodes + layer.out(reference(layer.attention_norm(nodes), PAIRS))
    np.testing.assert_allclose(layer(nodes, GRAPH), expected, rtol=1e-4, atol=1e-6)
