"""Who most likely chooses something next: probabilities that compare across users."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.special import logsumexp

from jaxrec.ranking.adjustments import AdjustmentBlocks, ScoreAdjustments
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.top_k import log_probabilities
from jaxrec.types import KnowledgeGraph

MAX_CELLS = 2**23  # probabilities at a time
IMPRESSIONS = 1000


@dataclass(frozen=True)
class Audience:
    """The likeliest of the users seen so far, in descending order."""

    user_ids: pl.Series
    log_p: Float[np.ndarray, " n"]


def empty_audience() -> Audience:
    """An audience before any user was seen."""
    return Audience(pl.Series("user_id", dtype=pl.String), np.zeros(0, np.float32))


def merge_audience(
    audience: Audience, user_ids: pl.Series, log_p: Float[np.ndarray, " U"], size: int
) -> Audience:
    """The `size` likeliest of an audience and more users; equals keep their order."""
    all_ids = pl.concat([audience.user_ids, user_ids.alias("user_id")])
    log_p = np.concatenate([audience.log_p, log_p])
    order = np.argsort(-log_p, kind="stable")[:size]
    order = order[log_p[order] > -np.inf]
    return Audience(all_ids.gather(order), log_p[order])


def audience_table(audience: Audience, bid: float | None) -> pl.DataFrame:
    """`rank`, `user_id`, `probability`, and with a bid `ecpm` = probability x bid x 1000."""
    table = pl.DataFrame(
        {
            "rank": np.arange(1, len(audience.log_p) + 1, dtype=np.int32),
            "user_id": audience.user_ids,
            "probability": np.exp(audience.log_p.astype(np.float64)),
        }
    )
    if bid is None:
        return table
    return table.with_columns((pl.col("probability") * bid * IMPRESSIONS).alias("ecpm"))


def entity_items(graph: KnowledgeGraph, node: int) -> Int[np.ndarray, " n"]:
    """The items of an entity: the item itself, or the items linked to the entity or below it.

    Below a category are the categories with an edge to it, and so on down.

    Args:
        node: node id.
    """
    item_count = graph.types[0].count
    if node < item_count:
        return np.array([node])
    own_type = next(t for t in graph.types if t.offset <= node < t.offset + t.padded_size)
    same_type = (graph.heads >= own_type.offset) & (
        graph.heads < own_type.offset + own_type.padded_size
    )
    below = np.array([node])
    while True:
        into = np.isin(graph.tails, below)
        wider = np.union1d(below, graph.heads[into & same_type])
        if len(wider) == len(below):
            ends = np.concatenate([graph.heads[into], graph.tails[np.isin(graph.heads, below)]])
            return np.unique(ends[ends < item_count])
        below = wider


def choice_log_probability(
    vectors: Float[np.ndarray, "U F"],
    items: ItemTable,
    members: Int[np.ndarray, " n"],
    adjustments: AdjustmentBlocks,
    inverse_temperature: float,
) -> Float[np.ndarray, " U"]:
    """Log of the probability that a user's next item is one of the members.

    It sums the members' p(item | user) among the items that `adjustments` leave to the user; -inf
    where no member is left.
    """
    width, prepared = max(MAX_CELLS // len(members), 1), prepare(items)
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(vectors), width):
        block = vectors[start : start + width]

        def shifted(first: int, stop: int, start: int = start) -> ScoreAdjustments:
            return adjustments(start + first, start + stop)

        columns = np.broadcast_to(members, (len(block), len(members)))
        log_p = log_probabilities(
            block, prepared, columns, shifted, inverse_temperature=inverse_temperature
        )
        with np.errstate(divide="ignore"):
            parts.append(logsumexp(log_p, axis=1))
    return np.concatenate(parts)
