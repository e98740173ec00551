"""One of two processes with two devices each: `python layouts.py NUMBER HOST:PORT`."""

import sys

import numpy as np
import pytest

from jaxrec import processes
from jaxrec.errors import RunError
from jaxrec.sharding import ITEMS, make_mesh, process_copy, put, shardings

TREE = {
    "item_table": np.arange(512.0, dtype=np.float32).reshape(256, 2),
    "other": np.arange(3),
    "empty": np.zeros((3, 0)),
}


def check_copy(item_shards: int, rows: int) -> None:
    """A process has all rows of a table, each device so many of them, and everything else."""
    mesh = make_mesh(item_shards)
    copy = process_copy(put(TREE, shardings(TREE, mesh)), mesh)
    for name, values in TREE.items():
        assert copy[name].is_fully_addressable
        np.testing.assert_array_equal(copy[name], values)
    parts = copy["item_table"].addressable_shards
    assert [len(part.data) for part in parts] == [rows, rows]
    assert copy["item_table"].sharding.mesh.shape[ITEMS] == 256 // rows


if __name__ == "__main__":
    number, coordinator = int(sys.argv[1]), sys.argv[2]
    processes.join(coordinator, 2, number)
    for item_shards, rows in ((1, 256), (2, 128), (4, 128)):
        check_copy(item_shards, rows)
    processes.refuse_unequal(TREE)
    with pytest.raises(RunError, match="have read different data"):
        processes.refuse_unequal({**TREE, "own": np.array([number])})
