"""Users' states as files: batch scoring writes them, a live store loads them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.artifacts.partitions import SUCCESS
from jaxrec.artifacts.run_directory import reading
from jaxrec.errors import RunError
from jaxrec.inference.encoding import state_shapes
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.serving.stores.base import NEVER
from jaxrec.types import EventLog

LAYOUT = "layout.json"


def state_table(log: EventLog, states: Float[np.ndarray, "U S"]) -> pl.DataFrame:
    """One row per user: `user_id`, `events`, `last_time` (s; `NEVER` without events) and `state`,
    whose parts layout.json describes."""
    last_times = np.full(log.num_users, NEVER)
    last_times[log.lengths > 0] = log.times[log.offsets[1:][log.lengths > 0] - 1]
    return pl.DataFrame(
        {
            "user_id": log.user_ids,
            "events": log.lengths,
            "last_time": last_times,
            "state": pl.Series(states, dtype=pl.Array(pl.Float32, states.shape[1])),
        }
    )


def write_layout(model: TrainedModel, directory: Path) -> None:
    """Write `layout.json`: the parts of a state in their order, with their shapes."""
    directory.mkdir(parents=True, exist_ok=True)
    layout = {
        "step": model.step,
        "model": model.version,
        "parts": [
            {"name": name, "shape": shape} for name, shape in state_shapes(model.model).items()
        ],
    }
    (directory / LAYOUT).write_text(json.dumps(layout, indent=2))


def read_states(model: TrainedModel, directory: Path) -> pl.DataFrame:
    """The states that a finished job has written with --states.

    Raises:
        RunError: the job has not finished, another model wrote them, or a file is damaged.
    """
    if not (directory / SUCCESS).exists():
        raise RunError(f"{directory} holds no states of a finished job (--states)")
    with reading(directory, "this directory of states"):
        version = json.loads((directory / LAYOUT).read_text())["model"]
        states = pl.read_parquet(sorted(directory.glob("*.parquet")), glob=False)
    if version != model.version:
        raise RunError(f"the states in {directory} are those of another checkpoint")
    return states
