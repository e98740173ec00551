"""Numeric columns, such as prices, as a source of item vectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.inputs import Nodes
from jaxrec.models.items.features import NUM_BINS
from jaxrec.models.layers import Table, normal_table

KEY = 0x6E756D62  # of the random numbers, among the sources of an expert


class NumberSource(nnx.Module):
    """The sum of learned vectors, one of each column's bins; bin 0 stands for no number.

    A training step hides a share of the numbers, so that the case without one is learned.

    Args:
        columns: the names of the columns in `Nodes.features`.
        dropout: the share of numbers that a training step hides.
    """

    def __init__(self, columns: tuple[str, ...], width: int, dropout: float, rngs: nnx.Rngs):
        self.columns, self.dropout = columns, dropout
        rows = normal_table(len(columns) * (NUM_BINS + 1), width, rngs)
        self.bin_table = Table(rows[...].reshape(len(columns), NUM_BINS + 1, width))

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """The sum over the columns of the vectors of their bins."""
        bins = jnp.stack([nodes.features[name] for name in self.columns])
        if key is not None:
            own_key = jax.random.fold_in(key, KEY)
            bins = jnp.where(jax.random.bernoulli(own_key, self.dropout, bins.shape), 0, bins)
        columns = jnp.arange(len(self.columns))[:, None]
        return self.bin_table[...][columns, bins].sum(0)
