"""What a trained model says of its users' interests, as tables and as plots."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.inference.interests import strongest, weights_over_time
from jaxrec.ranking.top_k import AdjustmentBlocks, no_adjustments
from jaxrec.types import EventLog, Queries

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose methods call these


def profile_users(
    model: "TrainedModel", log: EventLog, vectors: Float[np.ndarray, "U 1+ED"], last: int, top: int
) -> pl.DataFrame:
    """`TrainedModel.profile` for the users of a log whose vectors are known."""
    earlier = np.maximum(log.offsets[1:] - last, log.offsets[:-1])
    before = model.vectors_at(log, Queries(np.arange(log.num_users), earlier))
    return profile_table(model, log.user_ids, vectors, before, top, model.masked(log))


def profile_table(
    model: "TrainedModel",
    user_ids: pl.Series,
    vectors: Float[np.ndarray, "U 1+ED"],
    before: Float[np.ndarray, "U 1+ED"],
    top: int,
    masked: AdjustmentBlocks,
) -> pl.DataFrame:
    """`TrainedModel.profile` from vectors now and before, and the items not to be told."""
    users = np.arange(len(user_ids))
    scale = model.inverse_temperature
    tables = []
    for name in (*model.profiled_types, ITEM):
        rows, weights, weights_before = strongest(
            scale * vectors,
            scale * before,
            model.block(name),
            model.valid(name),
            top,
            masked if name == ITEM else no_adjustments,
        )
        count = rows.shape[1]
        first, *title = model.names(name, rows.ravel()).iter_columns()
        table = pl.DataFrame(
            {
                "user_id": user_ids.gather(np.repeat(users, count)),
                "type": np.repeat(name, rows.size),
                "rank": np.tile(np.arange(1, count + 1, dtype=np.int32), len(users)),
                "id": first,
                "weight": weights.ravel(),
                "before": weights_before.ravel(),
            }
        ).with_columns((pl.col("weight") - pl.col("before")).alias("change"), *title)
        tables.append(table.filter(rows.ravel() > 0))
    return pl.concat(tables, how="diagonal").sort("user_id", maintain_order=True)


def plot_user(
    model: "TrainedModel", log: EventLog, path: Path, *, last: int = 20, top: int = 6
) -> None:
    """`TrainedModel.plot_profile` of the first user of a log."""
    from jaxrec.inference.plots import (
        plot_interest,  # matplotlib is slow to import, and seldom needed
    )

    positions = np.arange(max(log.offsets[1] - last, 0), log.offsets[1])
    moments = Queries(np.zeros(len(positions), np.int64), positions + 1)
    name, rows, weights = interest_over_time(model, model.vectors_at(log, moments), top)
    plot_interest(
        path,
        (positions + 1).tolist(),
        weights,
        model.names(name, rows).to_series().to_list(),
        model.labels(log.items[positions]).to_list(),
        f"Interest of user {log.user_ids[0]} by {name} over the last {len(positions)} events",
    )


def interest_over_time(
    model: "TrainedModel", vectors: Float[np.ndarray, "T 1+ED"], top: int
) -> tuple[str, Int[np.ndarray, " K"], Float[np.ndarray, "T K"]]:
    """From one user's vectors at T moments: the first profiled type of node, the nodes of it
    that matter most, and their weights at each moment."""
    name = (*model.profiled_types, ITEM)[0]
    rows, weights = weights_over_time(
        model.inverse_temperature * vectors,
        np.asarray(model.block(name)),
        model.valid(name),
        top,
    )
    return name, rows, weights
