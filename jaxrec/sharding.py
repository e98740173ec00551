"""The device mesh, and the places of arrays on it."""

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from math import gcd
from typing import Any

import jax
import numpy as np
from jax import Device
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from jaxrec.errors import ConfigError, RunError
from jaxrec.types import PADDING_MULTIPLE

USERS, ITEMS = "users", "items"
# in paths of train states and of the arrays of a training
ROWS_BY_ITEM = re.compile(
    r"item_table|entity_table|\.text$|\.features\[|"
    r"\.graph\.(edges|senders|receivers)$|\.edge_sampler\.edges$"
)


_started_by: int | None = None  # the process that has started JAX through this package


def refuse_fork() -> None:
    """Raise a RunError in a fork of a process that has started JAX.

    The threads of JAX do not survive a fork, so that computing there would wait for ever.
    """
    global _started_by
    _started_by = _started_by or os.getpid()
    if _started_by != os.getpid():
        raise RunError(
            "this process is a fork of one that has used JAX, where nothing can be computed; start "
            'processes with multiprocessing.get_context("spawn")'
        )


def make_mesh(item_shards: int = 1, devices: Sequence[Device] | None = None) -> Mesh:
    """A mesh of devices, by default all, [users, items], with `item_shards` along `items`.

    Raises a ConfigError if `item_shards` does not divide the devices, or the rows of tables.
    """
    refuse_fork()
    if item_shards > 1 and PADDING_MULTIPLE % item_shards:
        raise ConfigError(
            f"item_shards={item_shards} does not divide the rows of tables, which are a multiple "
            f"of {PADDING_MULTIPLE}; choose a power of two, at most {PADDING_MULTIPLE}"
        )
    count = jax.device_count() if devices is None else len(devices)
    if item_shards < 1 or count % item_shards:
        raise ConfigError(f"item_shards={item_shards} does not divide {count} devices")
    # embedding look-ups and segment sums raise on Explicit axes, the default
    shape, axis_types = (count // item_shards, item_shards), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, (USERS, ITEMS), axis_types=axis_types, devices=devices)


def single_device_mesh() -> Mesh:
    """A mesh of this process's first device."""
    return make_mesh(devices=jax.local_devices()[:1])


def shardings(tree, mesh: Mesh):
    """A NamedSharding for every leaf of a train state, or of the arrays of a training.

    The rows of tables, the texts and other features of items, and edges lie along `items`. All else
    is replicated. The optimizer state has the paths of the parameters, so it is sharded like them.
    """

    def rule(path, leaf):
        return by_item(mesh) if _has_rows_by_item(path, leaf) else replicated(mesh)

    return jax.tree_util.tree_map_with_path(rule, tree)


def rows_by_item(tree, mesh: Mesh):
    """A NamedSharding along `items` for the rows of every leaf."""
    return jax.tree.map(lambda _: by_item(mesh), tree)


def without_rows_by_item(tree):
    """The same tree with zero rows of all that lies along `items`."""

    def rule(path, leaf):
        if not _has_rows_by_item(path, leaf):
            return leaf
        return np.zeros((0, *leaf.shape[1:]), leaf.dtype)

    return jax.tree_util.tree_map_with_path(rule, tree)


def bytes_by_item(tree) -> tuple[int, int]:
    """The bytes of all that lies along `items`, and of the rest, on a single device."""
    sizes = [0, 0]
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        sizes[not _has_rows_by_item(path, leaf)] += leaf.size * leaf.dtype.itemsize
    return sizes[0], sizes[1]


def _has_rows_by_item(path, leaf) -> bool:
    return leaf.ndim > 0 and ROWS_BY_ITEM.search(jax.tree_util.keystr(path)) is not None


def laid_out(shapes, shardings):
    """Shapes and dtypes of a tree with shardings; `shardings` is a tree or a prefix of one."""

    def with_sharding(sharding, part):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part
        )

    return jax.tree.map(with_sharding, shardings, shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds completely."""
    return NamedSharding(mesh, PartitionSpec())


def by_item(mesh: Mesh) -> NamedSharding:
    """The sharding of rows along `items`."""
    return NamedSharding(mesh, PartitionSpec(ITEMS))


def divided_on(x: Any) -> Mesh | None:
    """The mesh of an array that its devices divide; None if none does."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
        return None
    return sharding.mesh if isinstance(sharding.mesh, Mesh) else None


def put(tree, layout):
    """Arrays that every process has whole, laid out; `layout` is a tree of shardings.

    Each device gets its part. `jax.device_put` would first gather all copies to compare them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, layout)

    def place(leaf, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, layout)


def shard_batch(batch, mesh: Mesh, batch_size: int):
    """Global arrays [B, ...] along `users`, made of the `host_rows` of every process."""
    sharding = NamedSharding(mesh, PartitionSpec(USERS))
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    rows, numbers = host_rows(batch_size, mesh), np.arange(batch_size)

    def whole(part: np.ndarray) -> jax.Array:
        def on_device(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return part[np.searchsorted(rows, numbers[index[0]])]

        shape = (batch_size, *part.shape[1:])
        return jax.make_array_from_callback(shape, sharding, on_device)

    return jax.tree.map(whole, batch)


def host_rows(batch_size: int, mesh: Mesh, parts: int = 1) -> Int[np.ndarray, " rows"]:
    """The rows of a global batch that this process provides: those on its devices, ascending.

    Processes whose devices lie side by side along `items` provide the same rows.

    Args:
        parts: micro-batches that each device divides its rows into.

    Raises:
        ConfigError: the devices along `users`, with these parts, do not divide the batch size.
    """
    check_batch(batch_size, mesh.shape[USERS], parts)
    sharding = NamedSharding(mesh, PartitionSpec(USERS))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def check_batch(batch_size: int, devices: int, parts: int = 1) -> None:
    """Raise a ConfigError unless devices along `users` have equal parts of a batch."""
    if batch_size % (devices * parts):
        each = f", with train.accumulate={parts} each," if parts > 1 else ""
        raise ConfigError(
            f"{devices} devices along `users`{each} do not divide "
            f"train.batch_size={batch_size}; choose a multiple of {devices * parts}"
        )


def process_mesh(mesh: Mesh) -> Mesh:
    """A mesh of this process's devices, as many along `items` as `mesh` has and divide them.

    So the rows of tables that no single device has room for stay divided.
    """
    return _mesh_of(_by_process(mesh)[jax.process_index()])


def process_copy(tree, mesh: Mesh, layout: Callable[..., Any] = shardings):
    """A tree of arrays on a mesh of many processes, as arrays that this process holds alone.

    They lie on the `process_mesh`. All processes must call it at the same time.

    Args:
        layout: gives the shardings of the tree on a mesh.
    """
    devices = _by_process(mesh)
    everywhere = _mesh_of(devices.reshape(-1, devices.shape[-1]))
    leaves, structure = jax.tree.flatten(tree)
    everywhere_layout, own = (
        tuple(jax.tree.leaves(layout(tree, part))) for part in (everywhere, process_mesh(mesh))
    )
    if [*everywhere.devices.flat] == [*mesh.devices.flat]:
        leaves = _identity(everywhere_layout)(leaves)
    else:  # one program cannot take devices in another order
        leaves = jax.device_put(leaves, list(everywhere_layout))
    shapes = [leaf.shape for leaf in leaves]
    parts = [[shard.data for shard in leaf.addressable_shards] for leaf in leaves]
    copies = map(jax.make_array_from_single_device_arrays, shapes, own, parts)
    return jax.tree.unflatten(structure, copies)


def _by_process(mesh: Mesh) -> np.ndarray:
    """The devices of a mesh as [processes, users, items]."""
    devices = sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    count = len(devices) // jax.process_count()
    return np.array(devices).reshape(jax.process_count(), -1, gcd(mesh.shape[ITEMS], count))


def _mesh_of(devices: np.ndarray) -> Mesh:
    return Mesh(devices, (USERS, ITEMS), axis_types=(AxisType.Auto,) * 2)


@cache
def _identity(layout: tuple[NamedSharding, ...]) -> Callable[..., Any]:
    return jax.jit(lambda leaves: leaves, out_shardings=list(layout))
