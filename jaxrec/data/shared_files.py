"""Arrays that the first process computes and all processes of a job map, so that each reads only
what it needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from jaxrec.processes import from_first


@dataclass(frozen=True)
class SharedFiles:
    """A directory that all processes see; None: every process computes its own arrays."""

    directory: Path | None = None

    def arrays(
        self, name: str, compute: Callable[[], Mapping[str, Shaped[np.ndarray, "..."]]]
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Arrays by name; all processes must call it, in the same order."""
        if self.directory is None:
            return dict(compute())
        place = self.directory / name
        from_first(lambda: write_arrays(place, compute()))
        return read_arrays(place)


def write_arrays(directory: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write arrays as files of a new directory."""
    directory.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(directory / f"{name}.npy", np.ascontiguousarray(values))


def read_arrays(directory: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a directory, mapped read-only."""
    return {
        path.stem: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        for path in directory.glob("*.npy")
    }
