"""Small parts that several models share."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.partitioning import drawn_rows


class Table(nnx.Param):
    """Rows of parameters that are looked up by number.

    A table stays in float32 when the model computes in bfloat16: the gradient of a row is a sum
    over all its look-ups, which bfloat16 cannot hold. See `cast_products`.
    """


def normal_table(num_rows: int, width: int, rngs: nnx.Rngs) -> Table:
    """A table of small random rows."""
    return Table(jax.random.normal(rngs.params(), (num_rows, width)) * 0.02)


class Linear(nnx.Linear):
    """`nnx.Linear` that flattens the leading axes to one before the product.

    With several leading axes, XLA transposes both operands of the kernel's gradient, which took
    two thirds of the time of an MLP on a CPU.
    """

    def __call__(
        self, inputs: Float[Array, "*shape D"], out_sharding: Any = None
    ) -> Float[Array, "*shape out"]:
        """`inputs @ kernel + bias`."""
        *leading, width = inputs.shape
        outputs = super().__call__(inputs.reshape(-1, width), out_sharding)
        return outputs.reshape(*leading, self.out_features)


def product(layer: nnx.Linear, x: Float[Array, "*shape D"]) -> Float[Array, "*shape out"]:
    """`layer(x)`, computed in the dtype of the layer's kernel and returned in that of x."""
    return layer(x.astype(layer.kernel[...].dtype)).astype(x.dtype)


def dropout(
    x: Float[Array, "*shape D"], rate: float, key: Array | None
) -> Float[Array, "*shape D"]:
    """Set a share `rate` of the entries to zero and scale up the rest; x itself without a key.

    The rate is rounded to a multiple of 1/256, so that one random word serves four entries.
    """
    level = round(rate * 256)
    if key is None or level == 0:
        return x
    *leading, width = x.shape
    bits = partial(jax.random.bits, key, dtype=jnp.uint32)
    words = drawn_rows(bits, (*leading, -(-width // 4)))
    levels = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*leading, -1)[..., :width]
    return jnp.where(levels >= level, x * (256 / (256 - level)), 0).astype(x.dtype)


def unit_norm(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """x divided by its length over the last axis; vectors shorter than 0.01 stay short.

    The lower bound keeps the gradient finite for items without features, whose vector is zero.
    """
    return x * inverse_length(x)


def inverse_length(x: Float[Array, "*shape D"]) -> Float[Array, "*shape 1"]:
    """What `unit_norm` multiplies x by."""
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    return jax.lax.rsqrt(jnp.maximum(squares, 1e-4))
