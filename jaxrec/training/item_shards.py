"""How many devices divide the items where the options leave it open."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxrec.processes import from_first
from jaxrec.sharding import bytes_by_item, make_mesh
from jaxrec.types import PADDING_MULTIPLE

SHARE_OF_MEMORY = 0.5  # the rest is for activations, gradients and logits


class Held(NamedTuple):
    """What the devices hold all the time, as arrays or shapes; names as in `TrainState`."""

    params: Any
    opt_state: Any
    text: Any
    arrays: Any


def fitting_mesh(mesh: Mesh, held: Held) -> tuple[Mesh, list[str]]:
    """A mesh with room for all this, and a note if devices divide the items.

    Args:
        mesh: whose devices each hold everything.
    """
    shards = from_first(lambda: fitting_shards(held, device_memory(), mesh.size))
    if shards == 1:
        return mesh, []
    note = f"{shards} devices divide the items, as train.item_shards 0 chooses by their memory"
    return make_mesh(shards), [note]


def fitting_shards(held: Held, memory: float, devices: int) -> int:
    """The smallest power of two that divides the devices and with which a device has room.

    It is the largest one that divides them if none is enough, and 1 if the memory is unknown (0).
    """
    rows, rest = bytes_by_item(held)
    most, shards = min(devices & -devices, PADDING_MULTIPLE), 1
    while memory and shards < most and rest + rows / shards > SHARE_OF_MEMORY * memory:
        shards *= 2
    return shards


def device_memory() -> float:
    """Bytes that programs get of one device; 0 if the platform does not say."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", 0)
