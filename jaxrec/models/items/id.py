"""Item ids as a source of item vectors."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.inputs import Nodes
from jaxrec.models.layers import normal_table
from jaxrec.partitioning import WHOLE, look_up, shards
from jaxrec.sharding import ITEMS


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
        table = self.item_table[...]
        if nodes.own_ids and shards(ITEMS) > 1:  # without a look-up among all devices
            unknown = look_up(table, jnp.zeros(1, int), spec=WHOLE)
            return jnp.where(ids[:, None] > 0, table, unknown)
        return look_up(table, ids, spec=WHOLE)
