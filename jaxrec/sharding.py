"""The device mesh, and the places of arrays on it."""

import os
import re
from collections.abc import Sequence

import jax
from jax import Device
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def shard_batch(batch, mesh: Mesh):
    """Global arrays made of every process's rows of a batch, sharded along `users`."""
    sharding = NamedSharding(mesh, PartitionSpec(USERS))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)


def host_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process provides.

    Raises a ConfigError if the number of processes does not divide the batch size.
    """
    processes = jax.process_count()
    if batch_size % processes:
        raise ConfigError(f"{processes} processes do not divide train.batch_size={batch_size}")
    share = batch_size // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
