"""The device mesh, and the places of arrays on it."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Device
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxrec.errors import ConfigError, RunError

USERS, ITEMS = "users", "items"
SHARDED_TABLES = re.compile(r"item_table|entity_table")  # in paths of parameters


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

    Raises a ConfigError if `item_shards` does not divide the devices.
    """
    refuse_fork()
    count = jax.device_count() if devices is None else len(devices)
    if item_shards < 1 or count % item_shards:
        raise ConfigError(f"item_shards={item_shards} does not divide {count} devices")
    # embedding look-ups and segment sums raise on Explicit axes, the default
    shape, axis_types = (count // item_shards, item_shards), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, (USERS, ITEMS), axis_types=axis_types, devices=devices)


def single_device_mesh() -> Mesh:
    """A mesh of this process's first device."""
    refuse_fork()
    return jax.make_mesh(
        (1, 1), (USERS, ITEMS), axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices()[:1]
    )


def state_shardings(tree, mesh: Mesh):
    """A NamedSharding for every leaf of a train state: tables along `items`, others replicated.

    The optimizer state has the paths of the parameters, so it is sharded like them.
    """

    def rule(path, leaf):
        is_table = leaf.ndim and SHARDED_TABLES.search(jax.tree_util.keystr(path))
        return NamedSharding(mesh, PartitionSpec(ITEMS) if is_table else PartitionSpec())

    return jax.tree_util.tree_map_with_path(rule, tree)


@contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Trace a program for a mesh, which `row_shards` then knows."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def devices_are_known() -> bool:
    """Whether the program that is traced is for `on_mesh`, or JAX has a single device.

    XLA divides all its operations among devices, but no Pallas kernel: that takes the mesh.
    """
    return not jax.sharding.get_abstract_mesh().empty or jax.device_count() == 1


def row_shards(rows: int) -> int:
    """Shards of a batch along `users` in the program that is traced; 1 outside of `on_mesh`.

    A scan that sums over rows keeps one sum for each shard and adds them up after its last step.
    Otherwise every step would wait for all devices.
    """
    shards = jax.sharding.get_abstract_mesh().shape.get(USERS, 1)
    return 1 if rows % shards else shards


def sums_by_shard(shards: int, *shape: int) -> Float[Array, "S *shape"]:
    """Zeros to add to, one sum for each of the `row_shards`, on the devices of the shard."""
    zeros = jnp.zeros((shards, *shape))
    return zeros if shards == 1 else jax.lax.with_sharding_constraint(zeros, PartitionSpec(USERS))


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


def host_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, " rows"]:
    """The rows of a global batch that this process provides: those on its devices, ascending.

    Processes whose devices lie side by side along `items` provide the same rows.

    Raises:
        ConfigError: the devices along `users` do not divide the batch size.
    """
    if batch_size % mesh.shape[USERS]:
        raise ConfigError(
            f"{mesh.shape[USERS]} devices along `users` do not divide "
            f"train.batch_size={batch_size}; choose a multiple"
        )
    sharding = NamedSharding(mesh, PartitionSpec(USERS))
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def process_mesh() -> Mesh:
    """A mesh of this process's devices, all along `users`."""
    devices = np.array(jax.local_devices())[:, None]
    return Mesh(devices, (USERS, ITEMS), axis_types=(AxisType.Auto,) * 2)


def process_copy(tree, mesh: Mesh):
    """A tree of arrays on a mesh of many processes, as arrays that this process holds alone.

    All processes must call it at the same time.
    """
    place = replicated(process_mesh())

    def own(array: jax.Array) -> jax.Array:
        parts = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, place, parts)

    return jax.tree.map(own, _replicate(mesh)(tree))


@cache
def _replicate(mesh: Mesh) -> Callable[..., Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
