import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from flax import nnx

from jaxrec.models.graph import layers as gnn
from jaxrec.models.graph.layers import GINLayer, GraphEncoder, ResidualLayer

NODES, WIDTH, RELATIONS = 7, 4, 3
PADDING_RELATION = RELATIONS - 1
# (sender, relation, receiver); node 5 is alone, node 6 is there for padding edges
EDGES = [(0, 0, 3), (1, 0, 3), (1, 1, 4), (3, 1, 0), (3, 1, 1), (4, 0, 1), (2, 0, 3), (0, 1, 4)]


def make_graph(edges: list[tuple[int, int, int]], padding: int = 0) -> jraph.GraphsTuple:
    by_receiver = sorted(edges, key=lambda edge: edge[2])
    last = NODES - 1
    senders, relations, receivers = np.array(
        by_receiver + [(last, PADDING_RELATION, last)] * padding, np.int32
    ).T
    return jraph.GraphsTuple(
        nodes=None,
        edges=jnp.asarray(relations),
        senders=jnp.asarray(senders),
        receivers=jnp.asarray(receivers),
        globals=None,
        n_node=jnp.array([last, 1]),
        n_edge=jnp.array([len(edges), padding]),
    )


def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NODES, WIDTH)).astype(np.float32)


def randomised(module):
    """The module with every parameter drawn at random, those included that begin as constants."""
    random = np.random.default_rng(1)
    params = nnx.state(module)
    nnx.update(
        module, jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), p.dtype), params)
    )
    return module


def gather(nodes: np.ndarray, message, aggregate: str) -> np.ndarray:
    """Sum or mean over the edges of a node, one edge after another."""
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
    mixed = (1 + float(layer.epsilon[...])) * nodes + gather(nodes, layer.message, aggregate)
    hidden = dense(layer.hidden, mixed)
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / hidden.std(-1, keepdims=True)
    hidden = hidden * np.asarray(layer.norm.scale[...]) + np.asarray(layer.norm.bias[...])
    expected = dense(layer.output, np.maximum(hidden, 0))
    np.testing.assert_allclose(layer(jnp.asarray(nodes), make_graph(EDGES)), expected, atol=1e-4)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_residual_layer_equals_its_formula(aggregate):
    layer = randomised(ResidualLayer(WIDTH, RELATIONS, aggregate, nnx.Rngs(0)))
    nodes = features()
    averages = gather(nodes, layer.message, "mean")
    expected = nodes + float(layer.alpha[...]) * gather(averages, layer.message, aggregate)
    np.testing.assert_allclose(layer(jnp.asarray(nodes), make_graph(EDGES)), expected, atol=1e-4)


def test_untrained_relations_pass_vectors_on_unchanged():
    layer = ResidualLayer(WIDTH, RELATIONS, "sum", nnx.Rngs(0))
    nodes = features()
    same = layer.message(jnp.arange(RELATIONS), jnp.asarray(nodes[:RELATIONS]))
    np.testing.assert_array_equal(same, nodes[:RELATIONS])


@pytest.fixture(params=["gin", "residual"])
def encoder(request):
    return randomised(GraphEncoder(request.param, 2, WIDTH, RELATIONS, "mean", nnx.Rngs(0)))


def test_encoder_sums_the_outputs_of_its_layers(encoder):
    graph, nodes = make_graph(EDGES), jnp.asarray(features())
    first = encoder.layers[0](nodes, graph)
    expected = first + encoder.layers[1](first, graph)
    np.testing.assert_allclose(encoder(nodes, graph), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_blocks_of_edges_have_the_values_and_gradients_of_all_at_once(encoder, size, monkeypatch):
    definition, params = nnx.split(encoder)
    graph = make_graph(EDGES)

    def values_and_gradients():
        def loss(params, nodes):
            vectors = nnx.merge(definition, params)(nodes, graph)
            return (vectors**2).sum(), vectors

        nodes = jnp.asarray(features())
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, nodes)

    at_once = values_and_gradients()
    monkeypatch.setattr(gnn, "edges_at_a_time", lambda: size)
    jax.tree.map(
        lambda blocks, whole: np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-4),
        values_and_gradients(),
        at_once,
    )


def test_a_permuted_graph_gives_permuted_vectors(encoder):
    nodes = features()
    new_number = np.random.default_rng(2).permutation(NODES)
    permuted_nodes = np.empty_like(nodes)
    permuted_nodes[new_number] = nodes
    permuted_edges = [(new_number[s], r, new_number[t]) for s, r, t in EDGES]
    permuted = encoder(jnp.asarray(permuted_nodes), make_graph(permuted_edges))
    expected = encoder(jnp.asarray(nodes), make_graph(EDGES))
    np.testing.assert_allclose(permuted[new_number], expected, rtol=1e-4, atol=1e-4)


def test_padding_edges_change_no_real_node(encoder):
    nodes = jnp.asarray(features())
    expected = encoder(nodes, make_graph(EDGES))[:-1]
    np.testing.assert_allclose(encoder(nodes, make_graph(EDGES, 5))[:-1], expected, rtol=1e-5)


def test_every_entity_gets_a_vector_from_its_neighbours(encoder):
    """Node 3 has no features of its own. Its neighbours are 0 to 2, and 4 is two steps away."""
    graph = make_graph(EDGES)
    nodes = jnp.asarray(features()).at[3].set(0)
    vectors = encoder(nodes, graph)
    assert vectors.shape == (NODES, WIDTH)
    assert (jnp.linalg.norm(vectors, axis=1) > 0.01).all()
    moved = jnp.abs(encoder(nodes.at[jnp.array([0, 4])].add(0.5), graph) - vectors).max(1) > 1e-4
    assert moved[3] and not moved[5]
