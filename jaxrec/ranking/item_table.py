"""The items that a ranking scores, as one bundle."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxrec.sharding import ITEMS, single_device_mesh
from jaxrec.types import NEG_INF


@dataclass(frozen=True)
class ItemTable:
    """Vectors to rank; a score is <query, vector> + bias.

    Attributes:
        vectors: one row an item, or a node of another type.
        valid: rows to rank. Row 0 (unknown) and rows of padding are not valid.
        bias: added to the scores of every query; -inf leaves an item out. None: zero.
    """

    vectors: Float[Array | np.ndarray, "I F"]
    valid: Bool[np.ndarray, " I"]
    bias: Float[np.ndarray, " I"] | None = None

    def __len__(self) -> int:
        return len(self.valid)

    @property
    def biases(self) -> Float[np.ndarray, " I"]:
        """The bias of every row, zeros if there is none."""
        return np.zeros(len(self), np.float32) if self.bias is None else self.bias

    def add_bias(self, bias: Float[np.ndarray, " I"]) -> "ItemTable":
        """The same vectors with more bias."""
        return replace(self, bias=(self.biases + bias).astype(np.float32))


@dataclass(frozen=True)
class PreparedItems:
    """An item table on a mesh, for callers that rank it many times."""

    rows: Float[Array, "I width"]  # vectors and bias
    valid: Bool[Array, " I"]
    mesh: Mesh

    def __len__(self) -> int:
        return len(self.valid)


def prepare(items: ItemTable | PreparedItems, mesh: Mesh | None = None) -> PreparedItems:
    """Lay a table out on a mesh (one device by default), sharded along `items`.

    The bias becomes the last column, so that the matrix product adds it: adding it to the scores
    would cost as much as the product. Prepared items stay on their mesh.
    """
    if isinstance(items, PreparedItems):
        return items
    mesh = mesh or single_device_mesh()
    rows = _with_bias(items.vectors, items.biases, items.valid)
    sharding = NamedSharding(mesh, PartitionSpec(ITEMS))
    rows, valid = jax.device_put((rows, items.valid), sharding)
    return PreparedItems(rows, valid, mesh)


@jax.jit
def _with_bias(
    vectors: Float[Array, "I F"], bias: Float[Array, " I"], valid: Bool[Array, " I"]
) -> Float[Array, "I F+1"]:
    bias = jnp.where(valid & (bias > -jnp.inf), bias, NEG_INF)
    return jnp.concatenate([vectors, bias[:, None].astype(vectors.dtype)], axis=1)
