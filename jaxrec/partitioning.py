"""How the arrays of a program lie on the mesh that it is traced for.

Everything here leaves an array as it is outside of `on_mesh`, and on a mesh of one device.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from jaxrec.sharding import ITEMS, USERS, divided_on

BY_ITEM, BY_USER, WHOLE = PartitionSpec(ITEMS), PartitionSpec(USERS), PartitionSpec()

_of_each_device: ContextVar[bool] = ContextVar("of_each_device", default=False)


@contextmanager
def on_mesh(mesh: Mesh | AbstractMesh) -> Iterator[None]:
    """Trace a program for a mesh, which the functions of this file then know."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def on_mesh_of(x: Any) -> AbstractContextManager[None]:
    """`on_mesh` for an array whose rows devices along `items` divide; nothing for any other one."""
    mesh = divided_on(x)
    return nullcontext() if mesh is None else on_mesh(mesh)


def devices_are_known() -> bool:
    """Whether the program that is traced is for `on_mesh`, or JAX has a single device.

    XLA divides all its operations among devices, but no Pallas kernel: that takes the mesh.
    """
    return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


def shards(axis: str) -> int:
    """Devices along an axis of the mesh; 1 outside of `on_mesh` and inside of `each_device`."""
    return 1 if _of_each_device.get() else _mesh_size(axis)


def _mesh_size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def devices_that_share_rows() -> int:
    """Devices that each read some rows of a batch in `each_device`; 1 elsewhere."""
    return _mesh_size(USERS) if _of_each_device.get() else 1


def each_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The sum over all devices of `function(rows of a batch, *arguments)`.

    Each device calls the function with its own rows, as if no other device were there, and all
    results are added up in one message. XLA would send a message for every array of a result.
    The mesh must have one device along `items`, and devices along `users` that divide the rows.
    """

    def on_device(rows: Any, *arguments: Any) -> Any:
        token = _of_each_device.set(True)
        try:
            result, shape_of = ravel_pytree(function(rows, *arguments))
        finally:
            _of_each_device.reset(token)
        return shape_of(lax.psum(result, USERS))

    def on_all(rows: Any, *arguments: Any) -> Any:
        return jax.shard_map(
            on_device,
            mesh=jax.sharding.get_abstract_mesh(),
            in_specs=(BY_USER, *[WHOLE] * len(arguments)),
            out_specs=WHOLE,
            check_vma=False,
        )(rows, *arguments)

    return on_all


def drawn_rows(
    draw: Callable[[tuple[int, ...]], Shaped[Array, "all *shape"]], shape: tuple[int, ...]
) -> Shaped[Array, "rows *shape"]:
    """`draw(shape)`, random values by row, which do not depend on how devices share the rows.

    In `each_device` a device draws those of all devices and takes its own.
    """
    count, (rows, *rest) = devices_that_share_rows(), shape
    drawn = draw((rows * count, *rest))
    if count == 1:
        return drawn
    return lax.dynamic_slice_in_dim(drawn, lax.axis_index(USERS) * rows, rows)


def row_shards(rows: int) -> int:
    """Parts that the sequence encoder reads the rows of a batch in; 1 outside of `on_mesh`.

    A scan that sums over rows keeps one sum for each part and adds them up after its last step.
    Otherwise every step would wait for all devices.
    """
    return _parts(rows)[1]


def row_spec(rows: int) -> PartitionSpec:
    """How these rows lie."""
    return _parts(rows)[0]


def sums_by_shard(count: int, *shape: int) -> Float[Array, "S *shape"]:
    """Zeros to add to, one sum for each of the `row_shards`, on the devices of the shard."""
    zeros = jnp.zeros((count, *shape))
    return zeros if count == 1 else lax.with_sharding_constraint(zeros, _parts(count)[0])


def spread_rows(x: Shaped[Array, "B *shape"]) -> Shaped[Array, "B *shape"]:
    """Rows of a batch over all devices, as far as these divide them, or else along `users`.

    Without it, the devices that share a part of the items would all read the same histories.
    """
    spec, count = _parts(len(x))
    return x if count == 1 else lax.with_sharding_constraint(x, spec)


def _parts(rows: int) -> tuple[PartitionSpec, int]:
    users, everything = shards(USERS), shards(USERS) * shards(ITEMS)
    if rows % everything == 0:
        return PartitionSpec((USERS, ITEMS)), everything
    return (WHOLE, 1) if rows % users else (BY_USER, users)


def by_row(x: Shaped[Array, "rows *shape"]) -> Shaped[Array, "rows *shape"]:
    """Rows of items or of other nodes along `items`; whole where these devices do not divide them.

    This is for what reads whole vectors of single items.
    """
    return _placed(x, 0)


@partial(jax.jit, static_argnums=(1, 2))
def cut_rows(x: Shaped[Array, "rows *shape"], begin: int, end: int) -> Shaped[Array, "part *shape"]:
    """Some consecutive rows, `by_row`."""
    return by_row(x[begin:end])


def by_column(x: Shaped[Array, "rows columns *shape"]) -> Shaped[Array, "rows columns *shape"]:
    """Columns along `items`; whole where these devices do not divide them.

    This is for what selects or joins rows, or adds them to others, entry by entry: each device has
    its columns of all rows and needs no others.
    """
    return _placed(x, 1)


def to_rows(x: Shaped[Array, "rows columns *shape"]) -> Shaped[Array, "rows columns *shape"]:
    """What lies `by_column`, `by_row`: devices exchange their columns for those of their rows."""
    return _exchanged(x, 1, 0)


def to_columns(x: Shaped[Array, "rows columns *shape"]) -> Shaped[Array, "rows columns *shape"]:
    """What lies `by_row`, `by_column`."""
    return _exchanged(x, 0, 1)


def _exchanged(x: Array, before: int, after: int) -> Array:
    count, mesh = shards(ITEMS), jax.sharding.get_abstract_mesh()
    if count == 1:
        return x
    if x.shape[0] % count or x.shape[1] % count:
        return _placed(_placed(x, before), after)
    exchange = partial(lax.all_to_all, axis_name=ITEMS, tiled=True)
    specs = [PartitionSpec(*[None] * axis, ITEMS) for axis in (before, after)]
    return jax.shard_map(
        lambda part: exchange(part, split_axis=after, concat_axis=before),
        mesh=mesh,
        in_specs=specs[0],
        out_specs=specs[1],
    )(x)


def whole(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Everything on each device."""
    return x if shards(ITEMS) == 1 else lax.with_sharding_constraint(x, WHOLE)


def _placed(x: Array, axis: int) -> Array:
    if shards(ITEMS) == 1:
        return x
    if x.shape[axis] % shards(ITEMS):
        return whole(x)
    return lax.with_sharding_constraint(x, PartitionSpec(*[None] * axis, ITEMS))


def on_devices(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """A function of the parts of arrays that each device has; the function itself on one device.

    The function may use `total` and `local_rows`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or _of_each_device.get():
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def total(x: Any, axis: str) -> Any:
    """The sum over the devices along an axis, in a function of `on_devices`."""
    return x if shards(axis) == 1 else lax.psum(x, axis)


def local_rows(numbers: Int[Array, "*shape"], rows: Shaped[Array, "n *rest"]) -> Array:
    """Numbers of rows as those of a device's own `rows`; behind the last where it lacks them."""
    if shards(ITEMS) == 1:
        return numbers
    own = numbers - lax.axis_index(ITEMS) * len(rows)
    return jnp.where((own >= 0) & (own < len(rows)), own, len(rows))


def divisible_rows(x: Shaped[Array, "rows *shape"], fill: Any = 0) -> Shaped[Array, "more *shape"]:
    """Rows up to a number that the devices along `items` divide."""
    missing = -len(x) % shards(ITEMS)
    padding = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
    return jnp.pad(x, padding, constant_values=fill) if missing else x


def look_up(
    table: Shaped[Array, "rows *rest"],
    rows: Int[Array, "*shape"],
    *columns: Int[Array, "*shape"],
    spec: PartitionSpec = BY_USER,
) -> Shaped[Array, "..."]:
    """`table[rows, *columns]` of a table that lies along `items` by row.

    Each device looks up what it has, and the devices add up what they found. No table moves, as
    long as the gradient of one fits that of another: that of the table is summed along `users`.

    Args:
        spec: how the numbers lie, and the result.
    """
    if shards(ITEMS) == 1:
        return table[(rows, *columns)]
    spec = WHOLE if len(rows) % shards(USERS) else spec

    def on_device(table: Array, rows: Array, *columns: Array) -> Array:
        places = (local_rows(rows, table), *columns)
        return lax.psum(table.at[places].get(mode="fill", fill_value=0), ITEMS)

    specs = (BY_ITEM, *[spec] * (1 + len(columns)))
    mesh = jax.sharding.get_abstract_mesh()
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=spec)(
        by_row(divisible_rows(table)), rows, *columns
    )


def put_rows(
    table: Shaped[Array, "rows *rest"], rows: Int[Array, " M"], values: Shaped[Array, "M *rest"]
) -> Shaped[Array, "rows *rest"]:
    """`table.at[rows].set(values)` of a table that lies along `items` by row."""

    def put(table: Array, rows: Array, values: Array) -> Array:
        return table.at[local_rows(rows, table)].set(values, mode="drop")

    return on_devices(put, (BY_ITEM, WHOLE, WHOLE), BY_ITEM)(table, rows, values)
