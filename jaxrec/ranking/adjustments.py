"""Score adjustments: items of a user that a ranking leaves out or raises.

A ranking asks for the adjustments of one block of queries at a time, to save memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.packing import ranges
from jaxrec.errors import ConfigError
from jaxrec.types import NEG_INF, EventLog, Queries

MAX_EVENTS = 2**22  # of the histories of a block, from which only distinct items are kept


class ScoreAdjustments(NamedTuple):
    """Amounts to add to the scores of some (query, item) pairs."""

    rows: Int[np.ndarray, " X"]  # number of the query
    items: Int[np.ndarray, " X"]
    amounts: Float[np.ndarray, " X"]  # NEG_INF leaves the item out


AdjustmentBlocks = Callable[[int, int], ScoreAdjustments]
"""The adjustments of queries [start, stop). Rows count from `start` and ascend."""


def exclude(rows: Int[np.ndarray, " X"], items: Int[np.ndarray, " X"]) -> ScoreAdjustments:
    """Adjustments that leave items out of a ranking."""
    return ScoreAdjustments(rows, items, np.full(len(rows), NEG_INF, np.float32))


def no_adjustments(start: int, stop: int) -> ScoreAdjustments:
    """`AdjustmentBlocks` that change nothing."""
    return exclude(np.zeros(0, np.int64), np.zeros(0, np.int64))


def as_blocks(adjustments: ScoreAdjustments) -> AdjustmentBlocks:
    """`AdjustmentBlocks` from the adjustments of all queries, whose rows ascend."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        inside = slice(*np.searchsorted(adjustments.rows, [start, stop]))
        rows, items, amounts = (part[inside] for part in adjustments)
        return ScoreAdjustments(rows - start, items, amounts)

    return block


def select_queries(
    adjustments: AdjustmentBlocks, selected: Int[np.ndarray, " q"], num_queries: int
) -> AdjustmentBlocks:
    """The adjustments of selected queries (in ascending order) out of `num_queries`."""
    rows, items, amounts = adjustments(0, num_queries)
    new_row = np.full(num_queries, -1)
    new_row[selected] = np.arange(len(selected))
    kept = new_row[rows] >= 0
    return as_blocks(ScoreAdjustments(new_row[rows[kept]], items[kept], amounts[kept]))


def combine(*parts: AdjustmentBlocks) -> AdjustmentBlocks:
    """The adjustments of several sources, with ascending rows."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        fields = zip(*(part(start, stop) for part in parts), strict=True)
        rows, items, amounts = map(np.concatenate, fields)
        order = np.argsort(rows, kind="stable")
        return ScoreAdjustments(rows[order], items[order], amounts[order])

    return block


def scale(adjustments: AdjustmentBlocks, factor: float) -> AdjustmentBlocks:
    """Adjustments for scores that are multiplied by a factor; excluded items stay excluded."""

    def block(start: int, stop: int) -> ScoreAdjustments:
        unscaled = adjustments(start, stop)
        excluded = unscaled.amounts == NEG_INF
        amounts = np.where(excluded, NEG_INF, factor * unscaled.amounts).astype(np.float32)
        return unscaled._replace(amounts=amounts)

    return block


def amounts_of(
    adjustments: AdjustmentBlocks, num_queries: int, items: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "Q K"]:
    """What adjustments add to the scores of some items for every query."""
    rows, own, amounts = adjustments(0, num_queries)
    added = np.zeros((num_queries, len(items)))
    for place, item in enumerate(items):
        np.add.at(added[:, place], rows[own == item], amounts[own == item])
    return added


def masked_event_types(
    mask: tuple[str, ...], event_type_names: Sequence[str]
) -> Bool[np.ndarray, " types"]:
    """Which event types a mask covers.

    Args:
        mask: `("none",)`, `("seen",)` for all event types, or a list of event types.

    Raises:
        ConfigError: the mask names an unknown event type.
    """
    unknown = [name for name in mask if name not in ("none", "seen", *event_type_names)]
    if unknown:
        raise ConfigError(
            f"the mask names {unknown}; use none, seen, or event types among "
            f"{', '.join(event_type_names)}"
        )
    return np.array(["seen" in mask or name in mask for name in event_type_names])


def mask_adjustments(
    log: EventLog,
    queries: Queries,
    mask: tuple[str, ...],
    targets: Int[np.ndarray, " Q"] | None = None,
) -> AdjustmentBlocks:
    """Leave out the items of a query's history whose event type a mask covers.

    Args:
        mask: as in `masked_event_types`, with its errors.
        targets: one item a query that is never left out.
    """
    is_masked_type = masked_event_types(mask, log.event_type_names)

    def block(start: int, stop: int) -> ScoreAdjustments:
        part = Queries(queries.users[start:stop], queries.positions[start:stop])
        rows, events = _masked_events(log, part, is_masked_type)
        if targets is not None:
            kept = log.items[events] != targets[start:stop][rows]
            rows, events = rows[kept], events[kept]
        return exclude(rows, log.items[events])

    return block


def _masked_events(
    log: EventLog, queries: Queries, is_masked_type: Bool[np.ndarray, " types"]
) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
    """Query and number of the masked events before queries; in long histories the first one of
    every item, so that there are at most as many as scores."""
    if (queries.positions - log.offsets[queries.users]).sum() <= MAX_EVENTS:
        rows, events = history_events(log, queries, 0, len(queries))
        masked = is_masked_type[log.event_types[events]]
        return rows[masked], events[masked]
    users, number = np.unique(queries.users, return_inverse=True)
    lengths = np.zeros(len(users), np.int64)
    np.maximum.at(lengths, number, queries.positions - log.offsets[queries.users])
    events, owners = ranges(log.offsets[users], lengths), np.repeat(np.arange(len(users)), lengths)
    masked = is_masked_type[log.event_types[events]]
    events, owners = events[masked], owners[masked]
    pairs = owners * (int(log.items.max()) + 1) + log.items[events]
    firsts = events[np.sort(np.unique(pairs, return_index=True)[1])]
    begins = np.searchsorted(firsts, log.offsets[queries.users])
    counts = np.searchsorted(firsts, queries.positions) - begins
    return np.repeat(np.arange(len(queries)), counts), firsts[ranges(begins, counts)]


def repeat_adjustments(
    log: EventLog, queries: Queries, repeat_bias: Float[np.ndarray, "types A"]
) -> AdjustmentBlocks:
    """Add the repeat bias of every recent event to the score of its item.

    Args:
        repeat_bias: by type and age of the event; see `Recommender.repeat_bias`.
    """
    if not repeat_bias.any():
        return no_adjustments

    def block(start: int, stop: int) -> ScoreAdjustments:
        rows, events = history_events(log, queries, start, stop, repeat_bias.shape[1])
        ages = queries.positions[start:stop][rows] - 1 - events
        return ScoreAdjustments(rows, log.items[events], repeat_bias[log.event_types[events], ages])

    return block


def history_events(
    log: EventLog, queries: Queries, start: int, stop: int, newest: int | None = None
) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
    """Row in the block and event number of every event in the histories of queries [start, stop).

    Args:
        newest: use only that many of the newest events of a history.
    """
    ends = queries.positions[start:stop]
    lengths = ends - log.offsets[queries.users[start:stop]]
    if newest is not None:
        lengths = np.minimum(lengths, newest)
    return np.repeat(np.arange(len(lengths)), lengths), ranges(ends - lengths, lengths)
