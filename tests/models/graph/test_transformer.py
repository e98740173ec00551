import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, NODES, RELATIONS, WIDTH, features, make_graph, randomised
from helpers.messages import assert_same_values_and_gradients, dense, incoming, layer_norm

from jaxrec.models.graph.message_passing import attend
from jaxrec.models.graph.transformer import GraphTransformerLayer
from jaxrec.models.transformer import gelu

HEADS = 2


def attended(layer, hidden):
    """Attention of every node over its incoming edges, one node and head after another."""
    queries = dense(layer.query, hidden)
    keys = incoming(dense(layer.key, hidden), layer.key_message)
    values = incoming(dense(layer.value, hidden), layer.value_message)
    rows = []
    for node in range(NODES):
        if not keys[node]:
            rows.append(jnp.zeros(WIDTH))
            continue
        parts = []
        for head in np.split(np.arange(WIDTH), HEADS):
            key, value = jnp.stack(keys[node])[:, head], jnp.stack(values[node])[:, head]
            shares = jax.nn.softmax(key @ queries[node, head] / len(head) ** 0.5)
            parts.append(shares @ value)
        rows.append(jnp.concatenate(parts))
    return jnp.stack(rows)


def formula(layer, nodes):
    hidden = layer_norm(layer.attention_norm, nodes)
    nodes = nodes + dense(layer.out, attended(layer, hidden))
    up = gelu(dense(layer.mlp.up, layer_norm(layer.mlp_norm, nodes)))
    return nodes + dense(layer.mlp.down, up)


@pytest.mark.thorough
def test_graph_transformer_layer_equals_its_formula():
    layer = randomised(GraphTransformerLayer(WIDTH, RELATIONS, HEADS, nnx.Rngs(0)))
    assert_same_values_and_gradients(layer, formula, features(), make_graph(EDGES))


@pytest.mark.parametrize("size", [1, 100])
def test_logits_of_any_size_are_finite(size, monkeypatch):
    """A softmax that does not subtract the largest logit would overflow."""
    monkeypatch.setattr("jaxrec.models.graph.message_passing.edges_at_a_time", lambda: size)
    values = jnp.ones((NODES, 1, WIDTH))
    graph = make_graph(EDGES)

    def total(queries):
        sent = (values * 1000, values)
        result = attend(queries, sent, graph, message=lambda _, sent: sent)
        return result.sum(), result

    (_, result), gradient = jax.value_and_grad(total, has_aux=True)(values)
    has_edges = np.isin(np.arange(NODES), [receiver for *_, receiver in EDGES])
    np.testing.assert_allclose(result[:, 0, 0], has_edges, rtol=1e-6)
    assert jnp.isfinite(gradient).all()
