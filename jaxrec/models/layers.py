"""Small parts that several models share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """`nnx.Linear`, whose products see all leading axes as one.

    A kernel's gradient that sums over several axes has its operands transposed by XLA, which on a
    CPU was two thirds of the time of an MLP.
    """

    def __call__(
        self, inputs: Float[Array, "*shape D"], out_sharding: Any = None
    ) -> Float[Array, "*shape O"]:
        """inputs @ kernel + bias."""
        *leading, width = inputs.shape
        outputs = super().__call__(inputs.reshape(-1, width), out_sharding)
        return outputs.reshape(*leading, self.out_features)


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
