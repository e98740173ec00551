"""Small pure functions that several models share."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(
    x: Float[Array, "*shape D"], rate: float, key: Array | None
) -> Float[Array, "*shape D"]:
    """Zero a share `rate` of x and scale up the rest; x itself without a key.

    The share is rounded to a multiple of 1/256, so that one random word serves four entries.
    """
    level = round(rate * 256)
    if key is None or level == 0:
        return x
    *leading, width = x.shape
    words = jax.random.bits(key, (*leading, -(-width // 4)), jnp.uint32)
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*leading, -1)[..., :width]
    return jnp.where(levels >= level, x * (256 / (256 - level)), 0).astype(x.dtype)


def unit_norm(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """x divided by its length over the last axis; vectors shorter than 0.01 stay short.

    So the gradient is bounded where nothing is known of an item and its vector is zero.
    """
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-4))
