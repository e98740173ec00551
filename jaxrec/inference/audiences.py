"""Audiences: the users who most likely choose something next."""

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.special import logsumexp

from jaxrec.errors import InputError
from jaxrec.ranking.adjustments import AdjustmentBlocks, ScoreAdjustments
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.option_types import is_finite
from jaxrec.ranking.top_k import log_probabilities
from jaxrec.types import KnowledgeGraph

MAX_CELLS = 2**23  # probabilities at a time
IMPRESSIONS = 1000
EMPTY_AUDIENCE = pl.DataFrame(schema={"user_id": pl.String, "log_p": pl.Float32})


def check_bid(bid: float | None) -> None:
    """Raise an InputError for a price that is not a finite number of 0 or more."""
    if bid is not None and not (is_finite(bid) and bid >= 0):
        raise InputError(f"bid={bid!r}: give a finite price of 0 or more")


def likeliest(
    audience: pl.DataFrame, user_ids: pl.Series, log_p: Float[np.ndarray, " U"], size: int
) -> pl.DataFrame:
    """The `size` likeliest users of an audience and of more users.

    Equals keep their order. Users without any probability are left out.

    Returns:
        `user_id` and `log_p`, the likeliest first.
    """
    users = pl.DataFrame({"user_id": user_ids, "log_p": log_p})
    users = pl.concat([audience, users], how="vertical_relaxed").filter(pl.col("log_p") > -np.inf)
    return users.sort("log_p", descending=True, maintain_order=True).head(min(size, len(users)))


def audience_table(audience: pl.DataFrame, bid: float | None) -> pl.DataFrame:
    """`rank`, `user_id`, `probability`, and with a bid `ecpm` = probability x bid x 1000."""
    log_p = audience["log_p"].to_numpy().astype(np.float64)
    table = audience.select(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("rank"),
        "user_id",
        pl.Series("probability", np.exp(log_p)),
    )
    if bid is None:
        return table
    return table.with_columns((pl.col("probability") * bid * IMPRESSIONS).alias("ecpm"))


def entity_items(graph: KnowledgeGraph, node: int) -> Int[np.ndarray, " n"]:
    """The item itself, or the items that have an edge with an entity or with one below it.

    An entity is below another of its type if an edge, or a chain of edges, leads to that one.

    Args:
        node: node id of the item or entity.
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
        larger = np.union1d(below, graph.heads[into & same_type])
        if len(larger) == len(below):
            ends = np.concatenate([graph.heads[into], graph.tails[np.isin(graph.heads, below)]])
            return np.unique(ends[ends < item_count])
        below = larger


def choice_log_probability(
    vectors: Float[np.ndarray, "U F"],
    items: ItemTable,
    members: Int[np.ndarray, " n"],
    adjustments: AdjustmentBlocks,
    inverse_temperature: float,
) -> Float[np.ndarray, " U"]:
    """Log of the probability that a user's next item is one of the members.

    The probabilities are those among the items that `adjustments` leave to the user; -inf where no
    member is left.
    """
    size, prepared = max(MAX_CELLS // len(members), 1), prepare(items)
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size]

        def of_block(first: int, stop: int, start: int = start) -> ScoreAdjustments:
            return adjustments(start + first, start + stop)

        columns = np.broadcast_to(members, (len(block), len(members)))
        log_p = log_probabilities(
            block, prepared, columns, of_block, inverse_temperature=inverse_temperature
        )
        with np.errstate(divide="ignore"):
            parts.append(logsumexp(log_p, axis=1))
    return np.concatenate(parts)
