"""The device mesh and the one table of how values lie on it."""

import re

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

USERS, ITEMS = "users", "items"
# the first pattern that a parameter's path matches decides; optimiser state repeats these paths
PARTITION_RULES = (
    (re.compile(r"item_table|entity_table"), PartitionSpec(ITEMS)),
    (re.compile(r""), PartitionSpec()),
)


def make_mesh(item_shards: int = 1) -> Mesh:
    """All devices as [users, items]; `item_shards` of them along `items`.

    Raises:
        ValueError: the number of devices is not a multiple of `item_shards`.
    """
    devices = jax.device_count()
    if item_shards < 1 or devices % item_shards:
        raise ValueError(f"item_shards={item_shards} does not divide {devices} devices")
    # jax makes Explicit axes by default, under which look-ups and segment sums raise
    return jax.make_mesh(
        (devices // item_shards, item_shards), (USERS, ITEMS), axis_types=(AxisType.Auto,) * 2
    )


def single_device_mesh() -> Mesh:
    """The first device of this process as a mesh."""
    return jax.make_mesh(
        (1, 1), (USERS, ITEMS), axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices()[:1]
    )


def state_shardings(tree, mesh: Mesh):
    """A NamedSharding for every leaf of a train state, by PARTITION_RULES."""

    def rule(path, leaf):
        name = jax.tree_util.keystr(path)
        spec = next(spec for pattern, spec in PARTITION_RULES if pattern.search(name))
        return NamedSharding(mesh, spec if leaf.ndim else PartitionSpec())

    return jax.tree_util.tree_map_with_path(rule, tree)


def laid_out(shapes, shardings):
    """Shapes and dtypes of a tree under shardings: one a leaf, or one for a whole part of it."""

    def under(sharding, part):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part
        )

    return jax.tree.map(under, shardings, shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch, mesh: Mesh):
    """A host's rows of a batch as global arrays, rows along `users`."""
    sharding = NamedSharding(mesh, PartitionSpec(USERS))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), batch)


def host_rows(rows: int) -> slice:
    """The rows of a global batch that this process makes.

    Raises:
        ValueError: the processes do not divide the batch.
    """
    if rows % jax.process_count():
        raise ValueError(
            f"train.batch_size={rows} must be a multiple of {jax.process_count()} processes"
        )
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
