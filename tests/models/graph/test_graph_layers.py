import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, NODES, RELATIONS, WIDTH, features, make_graph, randomised

from jaxrec.config import ModelConfig
from jaxrec.models.graph import message_passing
from jaxrec.models.graph.build import build_graph_encoder
from jaxrec.models.graph.gin import GINLayer
from jaxrec.models.graph.residual import ResidualLayer


def gather(nodes: np.ndarray, message, aggregate: str) -> np.ndarray:
    """Sum or mean of the messages to every node, one edge after another."""
    scale, shift = np.asarray(message.scale[...]), np.asarray(message.shift[...])
    total, count = np.zeros_like(nodes), np.zeros((NODES, 1))
    for sender, relation, receiver in EDGES:
        total[receiver] += scale[relation] * nodes[sender] + shift[relation]
        count[receiver] += 1
    return total if aggregate == "sum" else total / np.maximum(count, 1)


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


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_residual_layer_equals_its_formula(aggregate):
    layer = randomised(ResidualLayer(WIDTH, RELATIONS, aggregate))
    nodes = features()
    averages = gather(nodes, layer.message, "mean")
    expected = nodes + float(layer.alpha[...]) * gather(averages, layer.message, aggregate)
    np.testing.assert_allclose(layer(jnp.asarray(nodes), make_graph(EDGES)), expected, atol=1e-4)


def test_untrained_relations_pass_vectors_on_unchanged():
    layer = ResidualLayer(WIDTH, RELATIONS, "sum")
    nodes = features()
    same = layer.message(jnp.arange(RELATIONS), jnp.asarray(nodes[:RELATIONS]))
    np.testing.assert_array_equal(same, nodes[:RELATIONS])


@pytest.fixture(params=["gin", "residual"])
def encoder(request):
    config = ModelConfig(hidden_size=WIDTH, graph_layer=request.param, num_graph_layers=2)
    return randomised(build_graph_encoder(config, num_relations=1, rngs=nnx.Rngs(0)))


def test_encoder_sums_the_outputs_of_its_layers(encoder):
    graph, nodes = make_graph(EDGES), jnp.asarray(features())
    first = encoder.layers[0](nodes, graph)
    expected = first + encoder.layers[1](first, graph)
    np.testing.assert_allclose(encoder(nodes, graph), expected, rtol=1e-5)


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


def test_every_entity_gets_a_vector_from_its_neighbours(encoder):
    """Node 3 has no features of its own. Its neighbours are 0 to 2, and 4 is two steps away."""
    graph = make_graph(EDGES)
    nodes = jnp.asarray(features()).at[3].set(0)
    vectors = encoder(nodes, graph)
    assert vectors.shape == (NODES, WIDTH)
    assert (jnp.linalg.norm(vectors, axis=1) > 0.01).all()
    moved = jnp.abs(encoder(nodes.at[jnp.array([0, 4])].add(0.5), graph) - vectors).max(1) > 1e-4
    assert moved[3] and not moved[5]
