"""Users' states as files: batch scoring writes them, a live store loads them."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.artifacts.directories import matching_directories, open_directory
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


def read_states(model: TrainedModel, source: str | Path) -> pl.DataFrame:
    """The states that finished jobs have written with --states.

    Args:
        source: a directory, a pattern of directories, or a URL of either that fsspec opens. Of a
            user with several states, the last one counts.

    Raises:
        RunError: there is no such directory, a job has not finished, another model wrote the
            states, or a file is damaged.
        ConfigError: nothing here opens such a URL.
    """
    states = pl.concat([_states_in(model, place) for place in matching_directories(str(source))])
    newest = states.unique("user_id", keep="last", maintain_order=True)
    return newest.with_columns(pl.col("user_id").cast(pl.String))


def _states_in(model: TrainedModel, place: str) -> pl.DataFrame:
    directory = open_directory(place)
    names = directory.names()
    if SUCCESS not in names:
        raise RunError(f"{place} holds no states of a finished job (--states)")
    with reading(Path(place), "this directory of states"):
        files = [
            directory.read(n) for n in names if n.startswith("part-") and n.endswith(".parquet")
        ]
        old = directory.read(OLD_LAYOUT) if OLD_LAYOUT in names else None
        layouts = {old or pl.read_parquet_metadata(BytesIO(file))[LAYOUT] for file in files}
        versions = {json.loads(layout)["model"] for layout in layouts}
        states = pl.concat([pl.read_parquet(BytesIO(file)) for file in files])
    if versions != {model.version}:
        raise RunError(f"the states in {place} are those of another checkpoint")
    return states
