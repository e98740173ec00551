"""Events in time order as one compressed log, and what of it is held out."""

import tempfile
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from jaxrec.config import SplitConfig
from jaxrec.errors import DataError
from jaxrec.runtime import cache_dir
from jaxrec.types import EventLog, Queries

MILLISECONDS = 1000
MAPPED_FROM = 20_000_000
MAX_EVENT_TYPES = 128  # a event_type is a byte


@dataclass(frozen=True)
class Split:
    """A log of which user u's first `train_lengths[u]` events train the model.

    `test` names the query sets to report; `validation` selects the model.
    """

    log: EventLog
    train_lengths: Int[np.ndarray, " U"]
    validation: Queries
    test: dict[str, Queries]

    @property
    def in_training(self) -> Bool[np.ndarray, " M"]:
        """Which events of the log train the model."""
        return _position_in_history(self.log) < np.repeat(self.train_lengths, self.log.lengths)


def build_event_log(
    events: pl.DataFrame,
    item_ids: pl.Series,
    *,
    item_ties: bool = False,
    has_time: bool = True,
    event_type_names: tuple[str, ...] | None = None,
    mapped_from: int = MAPPED_FROM,
) -> EventLog:
    """Sort validated events by user and time into an EventLog.

    Args:
        events: columns `user_id`, `item_id`, `timestamp` (milliseconds, or positions) and `event`.
        item_ids: ids in index order; the first (null) is the unknown item. Ids that are not
            among them become item 0.
        item_ties: equal timestamps are put in item order; otherwise they keep their file order.
        has_time: whether timestamps are real.
        event_type_names: the event_types a trained model knows; by default those of the events, sorted.
        mapped_from: logs of so many events lie in memory-mapped files that vanish with them.

    Raises:
        DataError: an event type is not among `event_type_names`, or there are more than `MAX_EVENT_TYPES`.
    """
    event_types = event_type_names or tuple(sorted(events["event"].unique()))
    if len(event_types) > MAX_EVENT_TYPES:
        raise DataError(
            f"events are of {len(event_types):,} event_types ({', '.join(event_types[:5])} ...), and {MAX_EVENT_TYPES} at "
            "most are read; the column `event` names what was done, such as view or buy"
        )
    unknown = set(events["event"].unique()) - set(event_types)
    if unknown:
        raise DataError(
            f"events are of event_types that the model does not know: {', '.join(sorted(unknown))}; it "
            f"knows {', '.join(event_types)}. Leave them out, or have a strategy's feedback read them"
        )
    user_ids = events["user_id"].unique().sort()
    tie_break = ["item"] if item_ties else []
    # ids become numbers before they are sorted, and places are sorted before what lies there:
    # sorting text took twice the memory, sorting all columns at once 60 MiB more for 3 million
    known = pl.DataFrame(
        [
            _numbers(events["user_id"], user_ids, np.int32).alias("user"),
            _numbers(events["item_id"], item_ids, np.int32).fill_null(0).alias("item"),
            events["event"]
            .cast(pl.Enum(event_types))
            .to_physical()
            .cast(pl.Int8)
            .alias("event_type"),
            events["timestamp"],
        ]
    )
    by_time = pl.arg_sort_by("user", "timestamp", *tie_break, maintain_order=True)
    ordered = known[known.select(by_time).to_series()]
    lengths = ordered["user"].rle().struct.field("len").to_numpy()
    unit = MILLISECONDS if has_time else 1
    place = _memory_mapped if len(ordered) >= mapped_from else np.asarray
    return EventLog(
        user_ids=user_ids,
        event_type_names=event_types,
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        items=place(ordered["item"].to_numpy()),
        event_types=place(ordered["event_type"].to_numpy()),
        times=place(ordered["timestamp"].to_numpy() // unit),
        has_time=has_time,
    )


def split_log(log: EventLog, config: SplitConfig, targets: Bool[np.ndarray, " M"]) -> Split:
    """Hold events out of the log.

    Args:
        targets: which events may be predicted in evaluation.

    Raises:
        DataError: nothing is left to train on, to validate on or to test on.
    """
    if config.scheme == "leave_one_out":
        split = _leave_one_out(log, targets)
    elif log.has_time:
        split = _global_time(log, config, targets)
    else:
        raise DataError(
            "data.time is `order`: timestamps are only positions, so there is no split by time; "
            "use --split.scheme leave_one_out"
        )
    sizes = {"validation": len(split.validation), **{k: len(q) for k, q in split.test.items()}}
    empty = [name for name, size in sizes.items() if not size]
    if empty or not (split.train_lengths > 1).any():
        fix = "give more events or loosen filters"
        if config.scheme == "global_time":
            fix += ", or hold out each user's last events with --split.scheme leave_one_out"
        raise DataError(
            f"the {config.scheme} split leaves nothing for {', '.join(empty) or 'training'} "
            f"({log.num_users} users, {len(log.items)} events); {fix}"
        )
    return split


def subsampled(split: Split, limit: int) -> Split:
    """The split with at most `limit` queries in a set, evenly spaced among its own."""

    def thin(queries: Queries) -> Queries:
        if len(queries) <= limit:
            return queries
        return queries[np.linspace(0, len(queries) - 1, limit).astype(int)]

    test = {name: thin(queries) for name, queries in split.test.items()}
    return replace(split, validation=thin(split.validation), test=test)


def last_sessions(log: EventLog, gap: float) -> EventLog:
    """The events of every user since the last pause of more than `gap` seconds.

    Without times, all of a user's events are one session.
    """
    pauses = np.diff(log.times, prepend=0) > (gap if log.has_time else np.inf)
    numbers = np.arange(len(log.items))
    begins = np.repeat(log.offsets[:-1], log.lengths)
    # of every event: the last pause up to it, or where its user begins
    latest = np.maximum(np.maximum.accumulate(np.where(pauses, numbers, 0)), begins)
    last_events = np.repeat(log.offsets[1:] - 1, log.lengths)
    return some_events(log, numbers >= latest[last_events])


def some_events(log: EventLog, present: Bool[np.ndarray, " M"]) -> EventLog:
    """The log of all its users and some of its events."""
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


def _numbers(column: pl.Series, ids: pl.Series, dtype: type[np.integer]) -> pl.Series:
    """RecommendedItem of every value among distinct ids; null for those that are not there."""
    index = pl.LazyFrame({"id": ids, "number": np.arange(len(ids), dtype=dtype)})
    values = column.alias("id").to_frame().lazy()
    combined = values.join(index, on="id", how="left", maintain_order="left")
    return combined.select("number").collect().to_series()


def _memory_mapped(values: Int[np.ndarray, " M"]) -> Int[np.ndarray, " M"]:
    """A copy in a file without a name, which the system removes with its last reader."""
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        mapped = np.memmap(file, values.dtype, "w+", shape=values.shape)
    mapped[:] = values
    return np.asarray(mapped)


def _position_in_history(log: EventLog) -> Int[np.ndarray, " M"]:
    return np.arange(len(log.items)) - np.repeat(log.offsets[:-1], log.lengths)


def _leave_one_out(log: EventLog, targets: Bool[np.ndarray, " M"]) -> Split:
    """A user's last target tests, the target before it validates; targets need a history."""
    test = _last_of_user(log, targets & (_position_in_history(log) > 0))
    before_test = np.arange(len(log.items)) < np.repeat(
        _per_user(log, test, log.offsets[1:]), log.lengths
    )
    validation = _last_of_user(log, targets & before_test & (_position_in_history(log) > 0))
    ends = _per_user(log, validation, _per_user(log, test, log.offsets[1:]))
    return Split(log, ends - log.offsets[:-1], validation, {"last": test})


def _global_time(log: EventLog, config: SplitConfig, targets: Bool[np.ndarray, " M"]) -> Split:
    """Everything up to a moment trains; the events after it test (arXiv:2507.16289)."""
    test_start = np.quantile(log.times, config.test_quantile)
    validation_start = np.quantile(log.times[log.times <= test_start], config.validation_quantile)
    candidates = targets & (_position_in_history(log) > 0)
    after_test = candidates & (log.times > test_start)
    validating = candidates & (log.times > validation_start) & (log.times <= test_start)
    trains = np.concatenate([[0], np.cumsum(log.times <= validation_start)])
    every = np.flatnonzero(after_test)
    return Split(
        log,
        np.diff(trains[log.offsets]),
        _last_of_user(log, validating),
        {
            "last": _last_of_user(log, after_test),
            "every": Queries(user_of_event(log)[every], every),
        },
    )


def _last_of_user(log: EventLog, chosen: Bool[np.ndarray, " M"]) -> Queries:
    positions = np.flatnonzero(chosen)
    users = user_of_event(log)[positions]
    last = np.append(users[1:] != users[:-1], True) if len(users) else np.zeros(0, bool)
    return Queries(users[last], positions[last])


def _per_user(
    log: EventLog, queries: Queries, default: Int[np.ndarray, " U"]
) -> Int[np.ndarray, " U"]:
    values = default.copy()
    values[queries.users] = queries.positions
    return values
