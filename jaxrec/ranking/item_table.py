"""The items that a ranking scores, as one bundle."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int8

from jaxrec.ranking.codes import CodedRows
from jaxrec.sharding import ITEMS, single_device_mesh
from jaxrec.types import NEG_INF


@dataclass(frozen=True)
class ItemTable:
    """Vectors to rank; a score is <query, vector> + bias.

    Attributes:
        vectors: one row an item, or a node of another type.
        valid: rows to rank. Row 0 (unknown) and rows of padding are not valid.
        bias: added to the scores of every query; -inf leaves an item out. None: zero.
        codes: what `encode_rows` makes of the vectors. Items are then searched by their codes and
            ranked by exact scores, so lists miss an item only where its code ranks behind those of
            all candidates.
    """

    vectors: Float[Array | np.ndarray, "I F"]
    valid: Bool[np.ndarray, " I"]
    bias: Float[np.ndarray, " I"] | None = None
    codes: tuple[Int8[np.ndarray, "I F"], Float[np.ndarray, " I"]] | None = None

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

    rows: Float[Array, "I width"] | CodedRows  # vectors and bias
    valid: Bool[Array, " I"]
    mesh: Mesh
    vectors: Float[Array | np.ndarray, "I F"] | None = None  # of coded rows: the exact ones

    def __len__(self) -> int:
        return len(self.valid)


def prepare(items: ItemTable | PreparedItems, mesh: Mesh | None = None) -> PreparedItems:
    """Lay a table out on a mesh (one device by default), sharded along `items`.

    The bias becomes the last column, so that the matrix product adds it: adding it to the scores
    would cost as much as the product. Coded tables keep it apart. Prepared items stay on their
    mesh.
    """
    if isinstance(items, PreparedItems):
        return items
    mesh = mesh or single_device_mesh()
    sharding = NamedSharding(mesh, PartitionSpec(ITEMS))
    if items.codes is not None:
        coded = CodedRows(*items.codes, _masked(items.biases, items.valid))
        coded, valid = jax.device_put((coded, items.valid), sharding)
        return PreparedItems(coded, valid, mesh, items.vectors)
    rows = _with_bias(items.vectors, items.biases, items.valid)
    rows, valid = jax.device_put((rows, items.valid), sharding)
    return PreparedItems(rows, valid, mesh)


@jax.jit
def _with_bias(
    vectors: Float[Array, "I F"], bias: Float[Array, " I"], valid: Bool[Array, " I"]
) -> Float[Array, "I F+1"]:
    bias = _masked(bias, valid)
    return jnp.concatenate([vectors, bias[:, None].astype(vectors.dtype)], axis=1)


def _masked(
    bias: Float[Array | np.ndarray, " I"], valid: Bool[Array | np.ndarray, " I"]
) -> Float[Array, " I"]:
    return jnp.where(valid & (bias > -jnp.inf), bias, NEG_INF)
