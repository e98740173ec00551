"""A column of vectors, such as those of images, as a source of item vectors."""

import zlib

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.inputs import Nodes
from jaxrec.models.layers import Linear


class VectorSource(nnx.Module):
    """An MLP over whitened vectors and a flag that is 1 where an item has none.

    A training step hides a share of the vectors, so that the case without one is learned.

    Args:
        column: the name of the column in `Nodes.features`.
        input_width: numbers of a whitened vector, and 1 for the flag.
        dropout: the share of vectors that a training step hides.
    """

    def __init__(self, column: str, input_width: int, width: int, dropout: float, rngs: nnx.Rngs):
        self.column, self.dropout = column, dropout
        self.hidden = Linear(input_width, 2 * width, rngs=rngs)
        self.output = Linear(2 * width, width, rngs=rngs)

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """output(gelu(hidden(vector and flag)))."""
        vectors = nodes.features[self.column]
        if key is not None:
            own_key = jax.random.fold_in(key, zlib.crc32(self.column.encode()))
            hidden = jax.random.bernoulli(own_key, self.dropout, (len(vectors), 1))
            none = jnp.zeros((1, vectors.shape[1])).at[0, -1].set(1)
            vectors = jnp.where(hidden, none, vectors)
        vectors = vectors.astype(self.hidden.kernel[...].dtype)
        return self.output(nnx.gelu(self.hidden(vectors)))
