"""The files of the item neighbours that a model adds to its scores, in a run directory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxrec.artifacts.run_directory import NEIGHBOURS, reading
from jaxrec.ranking.history_bias import ItemNeighbours
from jaxrec.runtime import atomic_path

HALF_LIFE = "half_life"  # key in the metadata


def write_neighbours(run: Path, neighbours: Mapping[str, ItemNeighbours]) -> None:
    """Write the item neighbours of a run by name, each file whole, and remove those of others."""
    for name, file in NEIGHBOURS.items():
        if name not in neighbours:
            (run / file).unlink(missing_ok=True)
            continue
        related = neighbours[name]
        arrays = {
            "items": related.items,
            "amounts": related.amounts,
            "event_types": related.event_types.astype(np.uint8),
        }
        with atomic_path(run / file) as draft:
            draft.write_bytes(save(arrays, {HALF_LIFE: repr(float(related.half_life))}))


def read_neighbours(run: Path) -> dict[str, ItemNeighbours]:
    """The item neighbours of a run by name.

    Raises:
        RunError: a file is damaged.
    """
    return {name: _read(run, file) for name, file in NEIGHBOURS.items() if (run / file).is_file()}


def _read(run: Path, name: str) -> ItemNeighbours:
    with reading(run, name), safe_open(run / name, "numpy") as file:
        return ItemNeighbours(
            items=file.get_tensor("items"),
            amounts=file.get_tensor("amounts"),
            half_life=float(file.metadata()[HALF_LIFE]),
            event_types=file.get_tensor("event_types").astype(bool),
        )
