"""Recall of future baskets: the items of the next events together, whatever their order."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.packing import ranges


class Baskets(NamedTuple):
    """Distinct (query, item) pairs, sorted."""

    rows: Int[np.ndarray, " X"]  # number of the query
    items: Int[np.ndarray, " X"]


def future_baskets(
    items: Int[np.ndarray, " M"],
    positions: Int[np.ndarray, " Q"],
    horizon: int,
    counted: Bool[np.ndarray, " M"],
) -> Baskets:
    """The items of the counted events among the next `horizon` events of every query.

    Args:
        items: of all events of a log; 0 is never in a basket.
        positions: the next event of every query; the user has `horizon` events from there on.
    """
    events = ranges(positions, np.full(len(positions), horizon))
    rows = np.repeat(np.arange(len(positions)), horizon)
    kept = counted[events] & (items[events] > 0)
    return distinct(rows[kept], items[events[kept]])


def distinct(rows: Int[np.ndarray, " X"], items: Int[np.ndarray, " X"]) -> Baskets:
    """Baskets of pairs that may repeat."""
    rows, items = np.unique(np.stack([rows, items]), axis=1)
    return Baskets(rows, items)


def basket_recall(lists: Int[np.ndarray, "Q K"], baskets: Baskets) -> Float[np.ndarray, " Q"]:
    """The share of each basket that is in the list of its query; NaN where a basket is empty.

    Args:
        lists: items; 0 where a list has ended.
    """
    count = len(lists)
    factor = max(int(lists.max(initial=0)), int(baskets.items.max(initial=0))) + 1
    pairs = np.arange(count)[:, None] * factor + lists
    hits = np.isin(pairs, baskets.rows * factor + baskets.items) & (lists > 0)
    sizes = np.bincount(baskets.rows, minlength=count)
    return np.where(sizes > 0, hits.sum(1) / np.maximum(sizes, 1), np.nan)
