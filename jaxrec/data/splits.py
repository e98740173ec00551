"""Splits of an event log into training events, validation targets and test targets."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from jaxrec.config import SplitConfig
from jaxrec.config.train import RefitEvents
from jaxrec.data.events import first_events
from jaxrec.data.slices import counts_before
from jaxrec.errors import DataError
from jaxrec.types import EventLog, Queries


@dataclass(frozen=True)
class Split:
    """An event log, divided into training, validation and test.

    Attributes:
        log: all events.
        train_lengths: the first `train_lengths[u]` events of user u train the model.
        before_test: the first `before_test[u]` events of user u come before the test.
        validation: queries that select the model.
        test: named sets of queries to report.
    """

    log: EventLog
    train_lengths: Int[np.ndarray, " U"]
    before_test: Int[np.ndarray, " U"]
    validation: Queries
    test: dict[str, Queries]

    @property
    def in_training(self) -> Bool[np.ndarray, " M"]:
        """True for the events that train the model."""
        return first_events(self.log, self.train_lengths)

    def refitted(self, events: RefitEvents) -> "Split":
        """The split whose training also has the validation events, or all events."""
        none = Queries(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if events == "validation":
            return replace(self, train_lengths=self.before_test, validation=none)
        lengths = self.log.lengths
        return Split(self.log, lengths, lengths, none, dict.fromkeys(self.test, none))

    def subsampled(self, limit: int) -> "Split":
        """The split with at most `limit` evenly spaced queries in each set."""
        test = {name: queries.subsampled(limit) for name, queries in self.test.items()}
        return replace(self, validation=self.validation.subsampled(limit), test=test)


def split_log(
    log: EventLog,
    config: SplitConfig,
    targets: Bool[np.ndarray, " M"],
    since: int | None = None,
) -> Split:
    """Split a log by the scheme of the configuration.

    Args:
        targets: True for the events that evaluation may predict.
        since: hold out none but later events (seconds since 1970); any part may then be empty.

    Raises:
        DataError: the training, validation or test part is empty, or the scheme needs times and
            the log has only positions.
    """
    new = np.ones(len(log.items), bool) if since is None else log.times > since
    if config.scheme == "leave_one_out":
        split = _leave_one_out(log, targets & new)
    elif log.has_time:
        split = _global_time(log, config, targets, new)
    else:
        raise DataError(
            "data.time is `order`, so there is no split by time; use --split.scheme leave_one_out"
        )
    if since is not None:
        return split
    sizes = {"validation": len(split.validation), **{k: len(q) for k, q in split.test.items()}}
    empty = [name for name, size in sizes.items() if not size]
    if empty or not (split.train_lengths > 1).any():
        fix = "give more events or loosen filters"
        if config.scheme == "global_time":
            fix += ", or hold out the last events of each user: --split.scheme leave_one_out"
        raise DataError(
            f"the {config.scheme} split leaves nothing for {', '.join(empty) or 'training'} "
            f"({log.num_users} users, {len(log.items)} events); {fix}"
        )
    return split


def _leave_one_out(log: EventLog, targets: Bool[np.ndarray, " M"]) -> Split:
    """Test on each user's last target that has a history; validate on the target before it."""
    targets = targets & _has_history(log)
    test = _last_of_user(log, targets)
    test_positions = _per_user(test, log.offsets[1:])
    before_test = first_events(log, test_positions - log.offsets[:-1])
    validation = _last_of_user(log, targets & before_test)
    train_ends = _per_user(validation, test_positions)
    starts = log.offsets[:-1]
    return Split(log, train_ends - starts, test_positions - starts, validation, {"last": test})


def _global_time(
    log: EventLog,
    config: SplitConfig,
    targets: Bool[np.ndarray, " M"],
    new: Bool[np.ndarray, " M"],
) -> Split:
    """Train up to one moment, validate up to a second, test after it (arXiv:2507.16289).

    The moments are quantiles of the times of new events.
    """
    times = log.times[new] if new.any() else log.times.max(keepdims=True)
    test_start = np.quantile(times, config.test_quantile, overwrite_input=True)
    times = times[times <= test_start]
    validation_start = np.quantile(times, config.validation_quantile, overwrite_input=True)
    del times
    targets = targets & new & _has_history(log)
    in_test = targets & (log.times > test_start)
    in_validation = targets & (log.times > validation_start) & (log.times <= test_start)

    def events_until(moment: float) -> Int[np.ndarray, " U"]:
        return np.diff(counts_before(log.times <= moment)[log.offsets].astype(np.int64))

    every = np.flatnonzero(in_test)
    test = {
        "last": _last_of_user(log, in_test),
        "every": Queries(log.users_at(every), every),
    }
    validation = _last_of_user(log, in_validation)
    return Split(log, events_until(validation_start), events_until(test_start), validation, test)


def _has_history(log: EventLog) -> Bool[np.ndarray, " M"]:
    """True for all events but the first of every user."""
    return ~first_events(log, np.minimum(log.lengths, 1))


def _last_of_user(log: EventLog, selected: Bool[np.ndarray, " M"]) -> Queries:
    """The last selected event of every user who has one."""
    positions = np.flatnonzero(selected)
    users = log.users_at(positions)
    last = np.append(users[1:] != users[:-1], True) if len(users) else np.zeros(0, bool)
    return Queries(users[last], positions[last])


def _per_user(queries: Queries, default: Int[np.ndarray, " U"]) -> Int[np.ndarray, " U"]:
    """The position of every user's query; the default for users without one."""
    positions = default.copy()
    positions[queries.users] = queries.positions
    return positions
