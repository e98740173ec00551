"""The items that a ranking scores, as one bundle."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import Array, Bool, Float, Int, Int8

from jaxrec.ranking.codes import CodedRows, encode_rows
from jaxrec.sharding import by_item, divided_on, single_device_mesh
from jaxrec.types import NEG_INF

CHANGED_ROWS = 256  # written at a time, so that one program serves every change


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

    def write(self, rows: Int[np.ndarray, " n"], vectors: Float[np.ndarray, "n F"]) -> None:
        """Change the vectors of some rows in place, with their codes; the arrays are NumPy's."""
        assert isinstance(self.vectors, np.ndarray)
        self.vectors[rows] = vectors
        if self.codes is not None:
            for part, changed in zip(self.codes, encode_rows(vectors), strict=True):
                part[rows] = changed

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
    block: int | None = None  # queries to rank at a time; None: as many as fit

    def __len__(self) -> int:
        return len(self.valid)


def prepare(
    items: ItemTable | PreparedItems, mesh: Mesh | None = None, block: int | None = None
) -> PreparedItems:
    """Lay a table out on a mesh, sharded along `items`.

    The bias becomes the last column, so that the matrix product adds it: adding it to the scores
    would cost as much as the product. Coded tables keep it apart. Prepared items stay as
    they are.

    Args:
        mesh: by default that of the vectors if devices along `items` divide them, else one device.
    """
    if isinstance(items, PreparedItems):
        return items
    mesh = mesh or divided_on(items.vectors) or single_device_mesh()
    sharding = by_item(mesh)
    if items.codes is not None:
        coded = CodedRows(*items.codes, _masked(items.biases, items.valid))
        coded, valid = jax.device_put((coded, items.valid), sharding)
        return PreparedItems(coded, valid, mesh, items.vectors, block)
    rows = _with_bias(items.vectors, items.biases, items.valid)
    rows, valid = jax.device_put((rows, items.valid), sharding)
    return PreparedItems(rows, valid, mesh, block=block)


def with_rows(
    prepared: PreparedItems, items: ItemTable, rows: Int[np.ndarray, " n"]
) -> PreparedItems:
    """Prepared items after some rows of their table have changed; the old ones are used up.

    Args:
        items: the changed table; all its other rows are those that were prepared.
    """
    if isinstance(prepared.rows, CodedRows):
        return prepare(items, prepared.mesh, prepared.block)
    table, biases = prepared.rows, items.biases
    for start in range(0, len(rows), CHANGED_ROWS):
        part = rows[start : start + CHANGED_ROWS]
        places = np.full(CHANGED_ROWS, len(items), np.int32)  # beyond the table: left out
        places[: len(part)] = part
        values = np.zeros((CHANGED_ROWS, table.shape[1]), np.float32)
        values[: len(part), :-1] = np.asarray(items.vectors)[part]
        values[: len(part), -1] = np.where(
            items.valid[part] & (biases[part] > -np.inf), biases[part], NEG_INF
        )
        table = _scatter(table.sharding)(table, places, values)
    valid = jax.device_put(items.valid.copy(), prepared.valid.sharding)
    return replace(prepared, rows=table, valid=valid)


@cache
def _scatter(sharding: Sharding) -> Callable[..., Array]:
    """Writes rows into a table of this sharding, in place."""

    def write(
        table: Float[Array, "I width"],
        rows: Int[Array, " n"],
        values: Float[Array, "n width"],
    ) -> Float[Array, "I width"]:
        return table.at[rows].set(values, mode="drop")

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


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
