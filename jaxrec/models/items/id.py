"""Item ids as a source of item vectors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.models.inputs import Nodes
from jaxrec.models.layers import normal_table
from jaxrec.partitioning import WHOLE, by_column, look_up, shards, to_columns, to_rows
from jaxrec.sharding import ITEMS
from jaxrec.types import padded_size

ITEM_TABLE = re.compile(r"\['item_table'\]")  # in paths of parameters, and of their moments


def id_rows(has_id: Bool[np.ndarray, " n"], num_ids: int) -> Int[np.ndarray, " n"]:
    """The row of every item in the id tables; 0, that of the unknown item, without an own id.

    Args:
        has_id: items with an id of their own; row 0 has none.
        num_ids: as in `Sizes`: with 0, the row of an item is its number.
    """
    rows = np.cumsum(has_id) if num_ids else np.arange(len(has_id))
    return np.where(has_id, rows, 0).astype(np.int32)


def rows_of_ids(has_id: Bool[np.ndarray, " n"]) -> int:
    """`Sizes.num_ids` of tables with a row for just the items with an id of their own."""
    return padded_size(1 + int(np.count_nonzero(has_id)))


class IdSource(nnx.Module):
    """A learned vector for every item id, with id dropout.

    Id dropout replaces an id by 0, the unknown item, so that the model learns to score items that
    it was not trained on.
    """

    def __init__(self, num_ids: int, width: int, id_dropout: float, rngs: nnx.Rngs):
        self.item_table = normal_table(num_ids, width, rngs)
        self.id_dropout = id_dropout

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """The rows of the items' ids; with a key, a random share of the ids is unknown."""
        ids = nodes.items
        if key is not None:
            dropped = jax.random.bernoulli(key, self.id_dropout, ids.shape)
            ids = jnp.where(dropped, 0, ids)
        table = self.item_table[...]
        if shards(ITEMS) > 1 and nodes.own_ids:  # most devices need no other
            unknown = look_up(table, jnp.zeros(1, int), spec=WHOLE)
            return jnp.where(ids[:, None] > 0, table, unknown)
        if shards(ITEMS) > 1 and len(ids) >= len(table):  # no device needs whole vectors of all
            return to_rows(by_column(to_columns(table)[ids]))
        return look_up(table, ids, spec=WHOLE)
