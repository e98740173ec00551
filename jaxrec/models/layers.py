"""Small pure functions that several models share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(x: Float[Array, "*shape"], rate: float, key: Array | None) -> Float[Array, "*shape"]:
    """Zero a share `rate` of x and scale up the rest; x itself without a key."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)


def unit_norm(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """x divided by its length over the last axis; vectors shorter than 0.01 stay short.

    So the gradient is bounded where nothing is known of an item and its vector is zero.
    """
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-4))
