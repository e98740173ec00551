"""Arrays of a checkpoint that all processes of a machine share by memory mapping.

The first process writes them to a directory of the cache as .npy files. A device array of a mapped
file shares its pages on CPUs, because the rows of the file are aligned to 64 bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock

from jaxrec.artifacts import run_directory
from jaxrec.runtime import atomic_path, cache_dir


@dataclass(frozen=True)
class MappedArrays:
    """A directory of arrays."""

    directory: Path

    def array(
        self, name: str, compute: Callable[[], np.ndarray], *, writable: bool = False
    ) -> np.ndarray:
        """A mapped array; the first process computes and writes it.

        Args:
            name: the same name always means the same values.
            writable: what this process changes, it alone sees; other pages stay shared.
        """
        path = self.directory / f"{name}.npy"
        with _lock(path):
            if not path.exists():
                with atomic_path(path) as draft:
                    np.save(draft, np.ascontiguousarray(compute()))
        return np.load(path, mmap_mode="c", allow_pickle=False) if writable else _mapped(path)


def restore_mapped(run: Path, **targets: Any) -> tuple[int, dict[str, Any], MappedArrays]:
    """`restore_best` with mapped arrays, and the directory for arrays derived from them.

    Raises:
        RunError: as `restore_best`.
    """
    root = cache_dir() / "mapped" / _hash(str(run.resolve()))
    with _lock(root):
        step, directory = _written(run, root, targets)
        for other in root.iterdir():
            if other != directory:  # processes that still map its files keep them
                shutil.rmtree(other, ignore_errors=True)
        leaves, structure = jax.tree.flatten(targets)
        arrays = [
            jax.device_put(_mapped(directory / f"{number}.npy"), leaf.sharding)
            for number, leaf in enumerate(leaves)
        ]
    return step, jax.tree.unflatten(structure, arrays), MappedArrays(directory)


def _written(run: Path, root: Path, targets: dict[str, Any]) -> tuple[int, Path]:
    """The best step and the directory of its arrays, written where it is missing."""
    while True:
        identity = run_directory.identity(run)
        directory = root / _hash(identity)
        if (directory / "step.json").exists():
            return json.loads((directory / "step.json").read_text()), directory
        step, restored = run_directory.restore_best(run, **targets)
        if run_directory.identity(run) != identity:  # training has written a better one meanwhile
            continue
        shutil.rmtree(directory, ignore_errors=True)  # without step.json it is not whole
        with atomic_path(directory) as draft:
            draft.mkdir()
            for number, leaf in enumerate(jax.tree.leaves(restored)):
                np.save(draft / f"{number}.npy", np.asarray(leaf))
            (draft / "step.json").write_text(json.dumps(step))
        return step, directory


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
