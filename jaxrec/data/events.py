"""The event log: all events as arrays, sorted by user and time."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import IO

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from jaxrec.data.codes import coded, codes, numbered, texts
from jaxrec.data.columns import index_in
from jaxrec.data.slices import counts_before, time_order, user_blocks
from jaxrec.data.times import as_milliseconds
from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime import cache_dir, personal
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
    users, user_ids, lengths = numbered(events["user_id"])
    items = coded(events["item_id"])
    item_of_code, item_codes = index_in(texts(items), item_ids).fill_null(0), codes(items)
    stamps = events["timestamp"].to_numpy()
    unit = 1000 if has_time else 1  # milliseconds to seconds

    def in_order() -> Iterator[tuple[np.ndarray, ...]]:
        """Items, event types and times of some users after the other."""
        for rows in user_blocks(users, lengths):
            ties = item_of_code.gather(item_codes[rows]).to_numpy() if item_ties else None
            ordered = rows[time_order(users[rows], stamps[rows], ties)]
            types = events["event"].gather(ordered).cast(pl.Enum(event_type_names)).to_physical()
            yield (
                item_of_code.gather(item_codes[ordered]).to_numpy(),
                types.cast(pl.Int8).to_numpy(),
                stamps[ordered] // unit,
            )

    store = _mapped if len(users) >= mapped_from else _joined
    sorted_items, event_types, times = store(in_order())
    return EventLog(
        user_ids=user_ids,
        event_type_names=event_type_names,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=sorted_items,
        event_types=event_types,
        times=times,
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
        offsets=counts_before(present)[log.offsets].astype(np.int64),
        items=log.items[present],
        event_types=log.event_types[present],
        times=log.times[present],
    )


def user_of_event(log: EventLog) -> Int[np.ndarray, " M"]:
    """The user number of every event."""
    return np.repeat(np.arange(log.num_users), log.lengths)


def first_events(log: EventLog, numbers: Int[np.ndarray, " U"]) -> Bool[np.ndarray, " M"]:
    """True for the first `numbers[u]` events of every user u."""
    runs = np.column_stack([numbers, log.lengths - numbers])
    return np.repeat(np.tile([True, False], log.num_users), runs.ravel())


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


def refuse_many_event_types(names: Sequence[str]) -> None:
    """Raise a DataError if there are more event types than a log can hold."""
    if len(names) > MAX_EVENT_TYPES:
        raise DataError(
            f"events have {len(names):,} event types (such as {personal(names[0])}), but at most "
            f"{MAX_EVENT_TYPES} are possible. Name actions, such as view or buy"
        )


def _checked_event_types(events: pl.Series, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names, or by default the distinct types of the events."""
    present = set(events.unique())
    refuse_many_event_types(sorted(present))
    names = names or tuple(sorted(present))
    if unknown := present - set(names):
        raise DataError(
            f"events have types that the model does not know: {', '.join(sorted(unknown))}; it "
            f"knows {', '.join(names)}. Remove them, or use a strategy whose feedback reads them"
        )
    return names


def _joined(parts: Iterable[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The parts of each array as one."""
    return [np.concatenate(of_array) for of_array in zip(*parts, strict=True)]


def _mapped(parts: Iterable[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """As `_joined`, in unnamed files, which the system deletes when the arrays are gone."""
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        dtypes: list[np.dtype] = []
        files: list[IO[bytes]] = []
        for part in parts:
            if not files:
                dtypes = [values.dtype for values in part]
                files = [stack.enter_context(tempfile.TemporaryFile(dir=directory)) for _ in part]
            for values, file in zip(part, files, strict=True):
                values.tofile(file)  # pages that are mapped would count as memory of the process
        return [np.asarray(np.memmap(f, d, "r+")) for f, d in zip(files, dtypes, strict=True)]
