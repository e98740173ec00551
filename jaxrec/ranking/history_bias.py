"""What the events of a history add to scores: to those of their items and of related items."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.ranking.adjustments import (
    AdjustmentBlocks,
    ScoreAdjustments,
    combine,
    history_events,
    mask_adjustments,
    no_adjustments,
    repeat_adjustments,
)
from jaxrec.types import EventLog, Queries

READ_HALF_LIVES = 4  # older events would add less than a sixteenth of what the newest adds


@dataclass(frozen=True)
class ItemNeighbours:
    """The items that are most related to each item, such as those that came after it in training.

    An event of an item adds `amounts` of its row, times 0.5^(age / half_life), to the scores of
    `items` of its row. The age is the number of later events of the user.

    Attributes:
        items: 0, the unknown item, fills rows that are too short.
        amounts: never negative.
        half_life: in events.
        event_types: True for the event types that count.
    """

    items: Int[np.ndarray, "I M"]
    amounts: Float[np.ndarray, "I M"]
    half_life: float
    event_types: Bool[np.ndarray, " types"]

    @property
    def newest(self) -> int:
        """How many of the newest events of a history are read."""
        return math.ceil(READ_HALF_LIVES * self.half_life)

    def adjustments(self, log: EventLog, queries: Queries) -> AdjustmentBlocks:
        """What histories add; items that training has not seen add nothing."""

        def block(start: int, stop: int) -> ScoreAdjustments:
            rows, events = history_events(log, queries, start, stop, self.newest)
            counted = self._counted(log, events)
            rows, events = rows[counted], events[counted]
            ages = queries.positions[start:stop][rows] - 1 - events
            items, amounts = self._added(log.items[events], ages)
            used = items > 0
            rows = np.broadcast_to(rows[:, None], items.shape)
            return ScoreAdjustments(rows[used], items[used], amounts[used])

        return block

    def of_events(self, log: EventLog, items: Int[np.ndarray, " K"]) -> Float[np.ndarray, "M K"]:
        """What every event of the only user of a log adds to the scores of some items."""
        added = np.zeros((len(log.items), len(items)), np.float32)
        events = np.arange(max(len(log.items) - self.newest, 0), len(log.items))
        events = events[self._counted(log, events)]
        related, amounts = self._added(log.items[events], len(log.items) - 1 - events)
        found = related[:, :, None] == np.where(items > 0, items, -1)
        added[events] = (amounts[:, :, None] * found).sum(1)
        return added

    def _counted(self, log: EventLog, events: Int[np.ndarray, " X"]) -> Bool[np.ndarray, " X"]:
        return (log.items[events] < len(self.items)) & self.event_types[log.event_types[events]]

    def _added(
        self, items: Int[np.ndarray, " X"], ages: Int[np.ndarray, " X"]
    ) -> tuple[Int[np.ndarray, "X M"], Float[np.ndarray, "X M"]]:
        decay = (0.5 ** (ages / self.half_life)).astype(np.float32)
        return self.items[items], decay[:, None] * self.amounts[items]


@dataclass(frozen=True)
class HistoryBias:
    """What events add to the scores of one target event type.

    Attributes:
        repeats: to the score of the same item, by type and age; see `Recommender.repeat_bias`.
        neighbours: to the scores of related items, by the name of the relation.
    """

    repeats: Float[np.ndarray, "types A"]
    neighbours: Mapping[str, ItemNeighbours] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """False if events add nothing."""
        return bool(self.repeats.any()) or bool(self.neighbours)

    def adjustments(self, log: EventLog, queries: Queries) -> AdjustmentBlocks:
        """What the histories of queries add."""
        repeats = repeat_adjustments(log, queries, self.repeats)
        parts = [part.adjustments(log, queries) for part in self.neighbours.values()]
        if repeats is not no_adjustments:
            parts.insert(0, repeats)
        return combine(*parts) if parts else no_adjustments

    def of_events(self, log: EventLog, items: Int[np.ndarray, " K"]) -> Float[np.ndarray, "M K"]:
        """What every event of the only user of a log adds to the scores of some items."""
        ages = len(log.items) - 1 - np.arange(len(log.items))
        known = self.repeats.shape[1]
        repeats = self.repeats[log.event_types, np.minimum(ages, known - 1)]
        own = (log.items[:, None] == items) & (ages < known)[:, None]
        added = np.where(own, repeats[:, None], 0)
        return sum((part.of_events(log, items) for part in self.neighbours.values()), added)


def history_adjustments(
    log: EventLog,
    queries: Queries,
    mask: tuple[str, ...],
    bias: HistoryBias,
    targets: Int[np.ndarray, " Q"] | None = None,
) -> AdjustmentBlocks:
    """Everything that a query's history changes: `mask_adjustments`, and what its events add."""
    masked = mask_adjustments(log, queries, mask, targets)
    return combine(masked, bias.adjustments(log, queries)) if bias else masked
