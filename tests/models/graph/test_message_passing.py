import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import make_graph_encoder
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph

from jaxrec.models.graph import context, message_passing
from jaxrec.models.graph.residual import ResidualLayer


def test_untrained_relations_pass_vectors_on_unchanged():
    layer = ResidualLayer(WIDTH, RELATIONS, "sum")
    nodes = features()
    same = layer.message(jnp.arange(RELATIONS), jnp.asarray(nodes[:RELATIONS]))
    np.testing.assert_array_equal(same, nodes[:RELATIONS])


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_blocks_have_the_values_and_gradients_of_one_block(graph_encoder, size, monkeypatch):
    definition, params = nnx.split(graph_encoder)
    graph = make_graph(EDGES)

    def values_and_gradients():
        def loss(params, nodes):
            vectors = nnx.merge(definition, params)(nodes, graph)
            return (vectors**2).sum(), vectors

        nodes = jnp.asarray(features())
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, nodes)

    at_once = values_and_gradients()
    monkeypatch.setattr(message_passing, "edges_at_a_time", lambda: size)
    monkeypatch.setattr(context, "nodes_at_a_time", lambda: size)
    jax.tree.map(
        lambda blocks, whole: np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-4),
        values_and_gradients(),
        at_once,
    )


@pytest.mark.parametrize("name", ["gin", "sage", "sage, max", "transformer"])
def test_memory_does_not_grow_with_the_edges(name, monkeypatch):
    """The temporary arrays of a gradient, for 32 and for 256 blocks of edges."""
    monkeypatch.setattr(message_passing, "edges_at_a_time", lambda: 64)
    definition, params = nnx.split(make_graph_encoder(name, width=64))
    random = np.random.default_rng(0)

    def temporary_bytes(num_edges):
        senders, receivers = random.integers(0, 32, (2, num_edges))
        graph = make_graph([(s, 0, r) for s, r in zip(senders, receivers, strict=True)])
        nodes = jnp.zeros((32, 64))

        def loss(params, nodes, graph):
            return nnx.merge(definition, params)(nodes, graph).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, nodes, graph).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = 64 * 32, 64 * 256
    # the numbers of an edge take some bytes; its message takes 256, and sums kept by block 128
    assert temporary_bytes(many) - temporary_bytes(few) < 48 * (many - few)
