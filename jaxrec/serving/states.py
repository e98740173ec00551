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

LAYOUT = "layout"  # the key of the layout in the metadata of a file of states
OLD_LAYOUT = "layout.json"  # where earlier versions kept it


def state_table(log: EventLog, states: Float[np.ndarray, "U S"]) -> pl.DataFrame:
    """One row per user: `user_id`, `events`, `last_time` (s; `NEVER` without events) and `state`,
    whose parts `state_layout` describes."""
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


def state_layout(model: TrainedModel) -> dict[str, str]:
    """The metadata of a file of states: the parts of a state in their order, with their shapes."""
    parts = [{"name": name, "shape": shape} for name, shape in state_shapes(model.model).items()]
    layout = {"step": model.step, "model": model.version, "parts": parts}
    return {LAYOUT: json.dumps(layout)}


def read_states(model: TrainedModel, directory: Path) -> pl.DataFrame:
    """The states that a finished job has written with --states.

    Raises:
        RunError: the job has not finished, another model wrote them, or a file is damaged.
    """
    if not (directory / SUCCESS).exists():
        raise RunError(f"{directory} holds no states of a finished job (--states)")
    with reading(directory, "this directory of states"):
        files = sorted(directory.glob("part-*.parquet"))
        versions = {json.loads(_layout(directory, file))["model"] for file in files}
        states = pl.read_parquet(files, glob=False)
    if versions != {model.version}:
        raise RunError(f"the states in {directory} are those of another checkpoint")
    return states.with_columns(pl.col("user_id").cast(pl.String))


def _layout(directory: Path, file: Path) -> str:
    """The layout of the states in a file."""
    old = directory / OLD_LAYOUT
    return old.read_text() if old.exists() else pl.read_parquet_metadata(file)[LAYOUT]
