"""A column of vectors, such as those of images, as a source of item vectors."""

import zlib

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.inputs import Nodes
from jaxrec.models.layers import Linear

GATE = 0.1  # at the beginning of training


class VectorSource(nnx.Module):
    """An MLP over whitened vectors and a flag that is 1 where an item has none, times a gate.

    A training step hides a share of the vectors, so that the case without one is learned. The gate
    is a learned number that begins near 0 (ReZero, arXiv:2003.04887): the weights of an MLP move
    all items at once, so vectors that tell nothing would drown the ids before these have learned.

    Args:
        column: the name of the column in `Nodes.features`.
        input_width: numbers of a whitened vector, and 1 for the flag.
        dropout: the share of vectors that a training step hides.
    """

    def __init__(self, column: str, input_width: int, width: int, dropout: float, rngs: nnx.Rngs):
        self.column, self.dropout = column, dropout
        self.hidden = Linear(input_width, 2 * width, rngs=rngs)
        self.output = Linear(2 * width, width, rngs=rngs)
        self.gate = nnx.Param(jnp.full((), GATE))

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """gate * output(gelu(hidden(vector and flag)))."""
        vectors = nodes.features[self.column]
        if key is not None:
            own_key = jax.random.fold_in(key, zlib.crc32(self.column.encode()))
            hidden = jax.random.bernoulli(own_key, self.dropout, (len(vectors), 1))
            none = jnp.zeros((1, vectors.shape[1])).at[0, -1].set(1)
            vectors = jnp.where(hidden, none, vectors)
        vectors = vectors.astype(self.hidden.kernel[...].dtype)
        return self.gate[...] * self.output(nnx.gelu(self.hidden(vectors)))
