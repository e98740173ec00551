"""Item ids as a source of item vectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.inputs import Nodes
from jaxrec.models.layers import normal_table


class IdSource(nnx.Module):
    """A learned vector for every item id, with id dropout.

    Id dropout replaces an id by 0, the unknown item, so that the model learns to score items that
    it was not trained on.
    """

    def __init__(self, num_items: int, width: int, id_dropout: float, rngs: nnx.Rngs):
        self.item_table = normal_table(num_items, width, rngs)
        self.id_dropout = id_dropout

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """The rows of the items' ids; with a key, a random share of the ids is unknown."""
        ids = nodes.items
        if key is not None:
            dropped = jax.random.bernoulli(key, self.id_dropout, ids.shape)
            ids = jnp.where(dropped, 0, ids)
        return self.item_table[...][ids]
