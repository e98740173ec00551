import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, RELATIONS, WIDTH, features, make_graph

from jaxrec.models.graph import message_passing
from jaxrec.models.graph.residual import ResidualLayer


def test_untrained_relations_pass_vectors_on_unchanged():
    layer = ResidualLayer(WIDTH, RELATIONS, "sum")
    nodes = features()
    same = layer.message(jnp.arange(RELATIONS), jnp.asarray(nodes[:RELATIONS]))
    np.testing.assert_array_equal(same, nodes[:RELATIONS])


@pytest.mark.parametrize("size", [1, 3, 4])
def test_blocks_of_edges_have_the_values_and_gradients_of_one_block(encoder, size, monkeypatch):
    definition, params = nnx.split(encoder)
    graph = make_graph(EDGES)

    def values_and_gradients():
        def loss(params, nodes):
            vectors = nnx.merge(definition, params)(nodes, graph)
            return (vectors**2).sum(), vectors

        nodes = jnp.asarray(features())
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, nodes)

    at_once = values_and_gradients()
    monkeypatch.setattr(message_passing, "edges_at_a_time", lambda: size)
    jax.tree.map(
        lambda blocks, whole: np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-4),
        values_and_gradients(),
        at_once,
    )
