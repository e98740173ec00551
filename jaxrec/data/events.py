"""The event log: all events as arrays, sorted by user and time."""

import tempfile
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from jaxrec.data.columns import index_in
from jaxrec.data.times import as_milliseconds
from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime import cache_dir
from jaxrec.types import EventLog

MAPPED_FROM = 20_000_000  # events
MAX_EVENT_TYPES = 128  # an event type is stored in one byte


def build_event_log(
    events: pl.DataFrame,
    item_ids: pl.Series,
    *,
    item_ties: bool = False,
    has_time: bool = True,
    event_type_names: tuple[str, ...] | None = None,
    mapped_from: int = MAPPED_FROM,
) -> EventLog:
    """Sort validated events by user and time.

    Args:
        events: columns `user_id`, `item_id`, `timestamp` (milliseconds, or positions) and `event`.
        item_ids: ids in index order. The first (null) stands for all ids that are not listed.
        item_ties: sort events of equal timestamps by item, not by their order in the file.
        has_time: whether timestamps are times and not positions.
        event_type_names: event types that a trained model knows; by default those of the events.
        mapped_from: number of events from which the arrays are memory-mapped temporary files.

    Raises:
        DataError: an event type is not in `event_type_names`, or there are more than
            `MAX_EVENT_TYPES` event types.
    """
    event_type_names = _checked_event_types(events["event"], event_type_names)
    user_ids = events["user_id"].unique().sort()
    # Sort numbers instead of text, and row numbers instead of whole rows: both save memory.
    coded = pl.DataFrame(
        {
            "user": index_in(events["user_id"], user_ids),
            "item": index_in(events["item_id"], item_ids).fill_null(0),
            "event_type": events["event"].cast(pl.Enum(event_type_names)).to_physical(),
            "timestamp": events["timestamp"],
        },
        schema_overrides={"event_type": pl.Int8},
    )
    tie_break = ["item"] if item_ties else []
    order = pl.arg_sort_by("user", "timestamp", *tie_break, maintain_order=True)
    ordered = coded[coded.select(order).to_series()]
    lengths = ordered["user"].rle().struct.field("len").to_numpy()
    unit = 1000 if has_time else 1  # milliseconds to seconds
    store = _memory_mapped if len(ordered) >= mapped_from else np.asarray
    return EventLog(
        user_ids=user_ids,
        event_type_names=event_type_names,
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        items=store(ordered["item"].to_numpy()),
        event_types=store(ordered["event_type"].to_numpy()),
        times=store(ordered["timestamp"].to_numpy() // unit),
        has_time=has_time,
    )


def last_sessions(log: EventLog, gap: float) -> EventLog:
    """The last session of every user: the events since the last pause of more than `gap` seconds.

    Without times, all events of a user are one session.
    """
    pauses = np.diff(log.times, prepend=0) > (gap if log.has_time else np.inf)
    numbers = np.arange(len(log.items))
    user_starts = np.repeat(log.offsets[:-1], log.lengths)
    after_pause = np.maximum.accumulate(np.where(pauses, numbers, 0))
    session_starts = np.maximum(after_pause, user_starts)
    last_events = np.repeat(log.offsets[1:] - 1, log.lengths)
    return some_events(log, numbers >= session_starts[last_events])


def some_events(log: EventLog, present: Bool[np.ndarray, " M"]) -> EventLog:
    """The log with the selected events only; users without events stay."""
    return replace(
        log,
        offsets=np.concatenate([[0], np.cumsum(present)])[log.offsets],
        items=log.items[present],
        event_types=log.event_types[present],
        times=log.times[present],
    )


def user_of_event(log: EventLog) -> Int[np.ndarray, " M"]:
    """The user number of every event."""
    return np.repeat(np.arange(log.num_users), log.lengths)


def position_in_history(log: EventLog) -> Int[np.ndarray, " M"]:
    """The number of earlier events of the same user, for every event."""
    return np.arange(len(log.items)) - np.repeat(log.offsets[:-1], log.lengths)


def seconds_of(time: str, option: str) -> int:
    """Seconds since 1970 of ISO 8601 text or a number; raises a ConfigError for other text."""
    try:
        return int(as_milliseconds(pl.Series(option, [time]), "options")[0]) // 1000
    except DataError:
        raise ConfigError(
            f"{option}: {time!r} is no time; give ISO 8601 text, such as 2026-01-31, or seconds "
            "since 1970"
        ) from None


def _checked_event_types(events: pl.Series, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names, or by default the distinct types of the events."""
    present = set(events.unique())
    names = names or tuple(sorted(present))
    if len(names) > MAX_EVENT_TYPES:
        raise DataError(
            f"events have {len(names):,} event types ({', '.join(names[:5])} ...), but at most "
            f"{MAX_EVENT_TYPES} are possible. Name actions, such as view or buy"
        )
    if unknown := present - set(names):
        raise DataError(
            f"events have types that the model does not know: {', '.join(sorted(unknown))}; it "
            f"knows {', '.join(names)}. Remove them, or use a strategy whose feedback reads them"
        )
    return names


def _memory_mapped(values: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """A copy in an unnamed file, which the system deletes when the array is gone."""
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        mapped = np.memmap(file, values.dtype, "w+", shape=values.shape)
    mapped[:] = values
    return np.asarray(mapped)
