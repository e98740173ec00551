"""Messages between nodes, computed edge by edge."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from helpers.graph import EDGES, NODES


def incoming(sent, message) -> list[list]:
    """The messages to every node."""
    scale, shift = message.scale[...], message.shift[...]
    return [
        [scale[r] * sent[s] + shift[r] for s, r, receiver in EDGES if receiver == node]
        for node in range(NODES)
    ]


def gather(sent, message, aggregate: str):
    """Sum, mean or largest entries of the messages to every node; zeros without messages."""
    combine = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max}[aggregate]
    nothing = jnp.zeros_like(sent[0])
    return jnp.stack(
        [
            combine(jnp.stack(messages), 0) if messages else nothing
            for messages in incoming(sent, message)
        ]
    )


def dense(linear, x):
    """A linear layer without any of its code."""
    product = x @ linear.kernel[...]
    return product if linear.bias is None else product + linear.bias[...][None]


def layer_norm(norm, x):
    """A LayerNorm without any of its code."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normalised = centred / jnp.sqrt(variance + norm.epsilon)
    return normalised * norm.scale[...][None] + norm.bias[...][None]


def assert_same_values_and_gradients(layer, formula, nodes: np.ndarray, graph) -> None:
    """A layer and `formula(layer, nodes)` agree, and so do the gradients of all inputs."""
    definition, params = nnx.split(layer)

    def loss(function):
        def of(params, nodes):
            vectors = function(nnx.merge(definition, params), nodes)
            return jnp.square(vectors).sum(), vectors

        return jax.value_and_grad(of, (0, 1), has_aux=True)(params, jnp.asarray(nodes))

    jax.tree.map(
        lambda result, expected: np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3),
        loss(lambda layer, nodes: layer(nodes, graph)),
        loss(formula),
    )
