"""The file of the co-occurrence that a model adds to its scores, in a run directory."""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxrec.artifacts.run_directory import FOLLOWERS, reading
from jaxrec.ranking.history_bias import Followers
from jaxrec.runtime import atomic_path

HALF_LIFE = "half_life"  # key in the metadata


def write_followers(run: Path, followers: Followers | None) -> None:
    """Write the co-occurrence of a run, whole or not at all; None removes the file."""
    if followers is None:
        (run / FOLLOWERS).unlink(missing_ok=True)
        return
    arrays = {
        "items": followers.items,
        "amounts": followers.amounts,
        "event_types": followers.event_types.astype(np.uint8),
    }
    with atomic_path(run / FOLLOWERS) as draft:
        draft.write_bytes(save(arrays, {HALF_LIFE: repr(float(followers.half_life))}))


def read_followers(run: Path) -> Followers | None:
    """The co-occurrence of a run, None if its scores have none.

    Raises:
        RunError: the file is damaged.
    """
    path = run / FOLLOWERS
    if not path.is_file():
        return None
    with reading(run, FOLLOWERS), safe_open(path, "numpy") as file:
        return Followers(
            items=file.get_tensor("items"),
            amounts=file.get_tensor("amounts"),
            half_life=float(file.metadata()[HALF_LIFE]),
            event_types=file.get_tensor("event_types").astype(bool),
        )
