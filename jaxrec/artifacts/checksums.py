"""Checksums of arrays and files, which show a damaged, mixed or changed copy."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

ODD = np.uint32(2_654_435_761)  # multiplies positions, so that exchanged values count


def of_tree(tree: Any) -> str:
    """Checksum of the names and values of a pytree of arrays, equal on any number of devices."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    values = jax.device_get(_of_arrays([leaf for _, leaf in leaves]))
    names = (jax.tree_util.keystr(path) for path, _ in leaves)
    sums = {name: int(value) for name, value in zip(names, values, strict=True)}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """Checksum of the names and contents of files, in the order of their names."""
    combined = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        combined.update(f"{path.name}\n{content}\n".encode())
    return combined.hexdigest()


@jax.jit
def _of_arrays(arrays: list[Array]) -> list[UInt32[Array, ""]]:
    return [_of_array(values) for values in arrays]


def _of_array(values: Array) -> UInt32[Array, ""]:
    """The sum of all bit patterns, each multiplied by an odd number of its position."""
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[values.dtype.itemsize]
    patterns = lax.bitcast_convert_type(values, bits).astype(jnp.uint32)
    position = jnp.zeros(values.shape, jnp.uint32)
    for axis, size in enumerate(values.shape):
        position = position * np.uint32(size % 2**32) + lax.broadcasted_iota(
            jnp.uint32, values.shape, axis
        )
    return (patterns * (position * ODD | np.uint32(1))).sum(dtype=jnp.uint32)
