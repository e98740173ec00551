"""The rows of the id tables that a step reads, as parameters of their own.

A step differentiates and updates only these rows, in the parameters and in the moments of the
optimizer. All others stay as they are, so a step reads and writes no whole table. For Adam this is
known as lazy Adam. It differs from Adam in that a row does not decay in steps that do not read it:
neither its moments nor, by the weight decay, the row itself. The bias correction counts all steps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrec.models.items.id import ITEM_TABLE
from jaxrec.partitioning import WHOLE, by_row, look_up, put_rows


def rows_of(tree, rows: Int[Array, " M"]):
    """A tree of parameters or of their moments, with only some rows of the id tables.

    Args:
        rows: row 0 first, that of the unknown item, and again for each item without an own id.
    """

    def take(path, leaf):
        return by_row(look_up(leaf, rows, spec=WHOLE)) if _is_table(path, leaf) else leaf

    return jax.tree_util.tree_map_with_path(take, tree)


def with_rows(tree, rows: Int[Array, " M"], part):
    """A tree whose other leaves are those of `part`, and whose id tables have these rows of it.

    Args:
        rows: as for `rows_of`; of row 0, the first one counts.
    """

    def put(path, whole, leaf):
        if not _is_table(path, whole):
            return leaf
        outside = jnp.where((rows == 0) & (jnp.arange(len(rows)) > 0), len(whole), rows)
        return put_rows(whole, outside, leaf)

    return jax.tree_util.tree_map_with_path(put, tree, part)


def places_of_ids(ids: Int[Array, " M"]) -> Int[Array, " M"]:
    """Where the ids of M items stand among the rows of these items, whose first is 0.

    The id of an item is its own row, or 0 for an unknown one.
    """
    return jnp.where(ids == 0, 0, jnp.arange(len(ids)))


def _is_table(path, leaf) -> bool:
    return leaf.ndim > 0 and ITEM_TABLE.search(jax.tree_util.keystr(path)) is not None
