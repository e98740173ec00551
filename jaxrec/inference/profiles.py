"""Profiles: what users are interested in, and how that changes.

The weights of a user are the softmax of the calibrated scores over the nodes of a type.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.special import logsumexp

from jaxrec.data.graph import ITEM
from jaxrec.inference.ranker import UserBatch
from jaxrec.ranking.adjustments import AdjustmentBlocks, no_adjustments
from jaxrec.ranking.item_table import ItemTable, PreparedItems, prepare
from jaxrec.ranking.top_k import best_items, log_probabilities
from jaxrec.types import EventLog, Queries

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose methods call these


def profile_users(model: "TrainedModel", users: UserBatch, last: int, top: int) -> pl.DataFrame:
    """`TrainedModel.profile` for users whose vectors are known."""
    log = users.log
    earlier = np.maximum(log.offsets[1:] - min(last, len(log.items)), log.offsets[:-1])
    before = model.encoder.vectors_at(log, Queries(np.arange(log.num_users), earlier))
    masked = model.ranker.mask(log)
    return profile_table(model, log.user_ids, (users.vectors, before), top, masked)


def profile_table(
    model: "TrainedModel",
    user_ids: pl.Series,
    vectors: tuple[Float[np.ndarray, "U F"], Float[np.ndarray, "U F"]],
    top: int,
    masked: AdjustmentBlocks,
    items: PreparedItems | None = None,
) -> pl.DataFrame:
    """`TrainedModel.profile` from user vectors (now, before).

    Args:
        masked: leaves items out.
        items: those of the model; prepared for this call if not given.
    """
    users = np.arange(len(user_ids))
    tables = []
    for name in (*model.profiled_types, ITEM):
        is_item = name == ITEM
        nodes = items if is_item and items is not None else model.index.table(name)
        rows, weights, weights_before = strongest(
            *vectors, nodes, top, model.inverse_temperature, masked if is_item else no_adjustments
        )
        count = rows.shape[1]
        identity, *title = model.index.names(name, rows.ravel()).iter_columns()
        columns = pl.DataFrame(
            {
                "user_id": user_ids.gather(np.repeat(users, count)),
                "type": np.repeat(name, rows.size),
                "rank": np.tile(np.arange(1, count + 1, dtype=np.int32), len(users)),
                "id": identity,
                "weight": weights.ravel(),
                "before": weights_before.ravel(),
            }
        ).with_columns((pl.col("weight") - pl.col("before")).alias("change"), *title)
        tables.append(columns.filter(rows.ravel() > 0))
    return pl.concat(tables, how="diagonal").sort("user_id", maintain_order=True)


def plot_user(
    model: "TrainedModel", log: EventLog, path: Path, *, last: int = 20, top: int = 6
) -> None:
    """`TrainedModel.plot_profile` of the first user of a log."""
    from jaxrec.inference.plots import plot_interest  # matplotlib is slow to import

    positions = np.arange(max(int(log.offsets[1]) - last, 0), log.offsets[1])
    moments = Queries(np.zeros(len(positions), np.int64), positions + 1)
    name, rows, weights = interest_over_time(model, model.encoder.vectors_at(log, moments), top)
    plot_interest(
        path,
        (positions + 1).tolist(),
        weights,
        model.index.names(name, rows).to_series().to_list(),
        model.index.labels(log.items[positions]).to_list(),
        f"Interest of user {log.user_ids[0]} by {name} over the last {len(positions)} events",
    )


def interest_over_time(
    model: "TrainedModel", vectors: Float[np.ndarray, "T F"], top: int
) -> tuple[str, Int[np.ndarray, " K"], Float[np.ndarray, "T K"]]:
    """The first profiled node type, its strongest nodes for one user, and their weights.

    Args:
        vectors: of the user at T moments.
    """
    name = (*model.profiled_types, ITEM)[0]
    nodes, scale = model.index.table(name), model.inverse_temperature
    return name, *weights_over_time(vectors, nodes, top, scale)


def strongest(
    now: Float[np.ndarray, "U F"],
    before: Float[np.ndarray, "U F"],
    nodes: ItemTable | PreparedItems,
    top: int,
    inverse_temperature: float,
    adjustments: AdjustmentBlocks = no_adjustments,
) -> tuple[Int[np.ndarray, "U K"], Float[np.ndarray, "U K"], Float[np.ndarray, "U K"]]:
    """The nodes of largest weight for every user, their weights, and their weights before.

    Node 0 marks an empty place.

    Args:
        now, before: user vectors at two moments.
        inverse_temperature: multiplies the scores.
    """
    prepared = prepare(nodes)
    top = min(top, int(np.asarray(prepared.valid).sum()))
    best = best_items(
        now, prepared, top, adjustments, with_log_z=True, inverse_temperature=inverse_temperature
    )
    assert best.log_z is not None
    weights = np.exp(np.where(best.items > 0, best.scores - best.log_z[:, None], -np.inf))
    log_weights_before = log_probabilities(
        before, prepared, best.items, adjustments, inverse_temperature=inverse_temperature
    )
    return best.items, weights, np.exp(log_weights_before)


def weights_over_time(
    vectors: Float[np.ndarray, "T F"], nodes: ItemTable, top: int, inverse_temperature: float
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, "T K"]]:
    """The nodes of largest total weight for one user over T moments, and their weights at each."""
    scores = inverse_temperature * (vectors @ np.asarray(nodes.vectors).T + nodes.biases)
    scores = np.where(nodes.valid[None], scores, -np.inf)
    weights = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    best = np.argsort(-weights.sum(0), kind="stable")[: min(top, int(nodes.valid.sum()))]
    return best, weights[:, best]
