"""Splits, compared with slow ones that loop over every user's events."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from jaxrec.config import SplitConfig
from jaxrec.data.splits import split_log
from jaxrec.errors import DataError
from jaxrec.types import EventLog, Queries

LEAVE_ONE_OUT = SplitConfig(scheme="leave_one_out")


def random_log(seed: int, num_users: int = 60) -> tuple[EventLog, np.ndarray]:
    """A log with ties and users of 0 to 9 events, and which of its events are targets."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 10, num_users)
    count = int(lengths.sum())
    log = EventLog(
        user_ids=pl.Series(map(str, range(num_users))),
        event_type_names=("buy", "view"),
        offsets=np.append(0, np.cumsum(lengths)),
        items=random.integers(1, 9, count).astype(np.int32),
        event_types=random.integers(0, 2, count).astype(np.int8),
        times=np.concatenate([np.sort(random.integers(0, 50, length)) for length in lengths]),
        has_time=True,
    )
    return log, random.random(count) < 0.7


def pairs(queries: Queries) -> list[tuple[int, int]]:
    return list(zip(queries.users.tolist(), queries.positions.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_leave_one_out_takes_the_last_two_targets_of_every_user(seed):
    log, targets = random_log(seed)
    test, validation, train_lengths = [], [], []
    for user in range(log.num_users):
        start, end = log.offsets[user], log.offsets[user + 1]
        held = [e for e in range(start + 1, end) if targets[e]][-2:]
        if held:
            test.append((user, held[-1]))
        if len(held) == 2:
            validation.append((user, held[0]))
        train_lengths.append((held[0] if held else end) - start)
    split = split_log(log, LEAVE_ONE_OUT, targets)
    assert pairs(split.test["last"]) == test
    assert pairs(split.validation) == validation
    assert split.train_lengths.tolist() == train_lengths


@pytest.mark.parametrize("seed", range(5))
def test_global_time_holds_out_the_events_after_the_quantiles(seed):
    log, targets = random_log(seed)
    config = SplitConfig(scheme="global_time", test_quantile=0.7, validation_quantile=0.8)
    frame = pl.DataFrame({"time": log.times.astype(float)})
    test_start = frame["time"].quantile(0.7, "linear")
    before = frame.filter(pl.col("time") <= test_start)["time"]
    validation_start = before.quantile(0.8, "linear")
    last, every, validation, train_lengths = [], [], [], []
    for user in range(log.num_users):
        start, end = log.offsets[user], log.offsets[user + 1]
        candidates = [e for e in range(start + 1, end) if targets[e]]
        tested = [(user, e) for e in candidates if log.times[e] > test_start]
        validated = [(user, e) for e in candidates if validation_start < log.times[e] <= test_start]
        every += tested
        last += tested[-1:]
        validation += validated[-1:]
        train_lengths.append(sum(log.times[start:end] <= validation_start))
    split = split_log(log, config, targets)
    assert pairs(split.test["last"]) == last
    assert pairs(split.test["every"]) == every
    assert pairs(split.validation) == validation
    assert split.train_lengths.tolist() == train_lengths


@pytest.mark.parametrize("scheme", ["leave_one_out", "global_time"])
def test_no_held_out_event_trains(scheme):
    log, targets = random_log(9)
    split = split_log(log, SplitConfig(scheme=scheme), targets)
    assert split.in_training.sum() == split.train_lengths.sum()
    for queries in (split.validation, *split.test.values()):
        assert targets[queries.positions].all()
        assert not split.in_training[queries.positions].any()


def test_a_split_by_time_needs_times():
    log, targets = random_log(0)
    with pytest.raises(DataError, match="leave_one_out"):
        split_log(replace(log, has_time=False), SplitConfig(scheme="global_time"), targets)


@pytest.mark.parametrize("scheme", ["leave_one_out", "global_time"])
def test_a_split_without_targets_is_an_error(scheme):
    log, targets = random_log(0)
    other = ", or hold out.*leave_one_out" if scheme == "global_time" else "$"
    message = f"{scheme} split leaves nothing for validation, last.*loosen filters{other}"
    with pytest.raises(DataError, match=message):
        split_log(log, SplitConfig(scheme=scheme), np.zeros_like(targets))


def test_a_split_that_leaves_one_event_per_user_cannot_train():
    log = EventLog(
        user_ids=pl.Series(["u"]),
        event_type_names=("buy", "view"),
        offsets=np.array([0, 3]),
        items=np.array([0, 2, 1], np.int32),
        event_types=np.array([1, 0, 1], np.int8),
        times=np.array([2, 3, 3]),
        has_time=True,
    )
    with pytest.raises(DataError, match=r"nothing for training \(1 users, 3 events\)"):
        split_log(log, LEAVE_ONE_OUT, np.ones(3, bool))


@pytest.mark.parametrize("scheme", ["leave_one_out", "global_time"])
def test_a_refit_trains_on_the_validation_events_or_on_all(scheme):
    log, targets = random_log(5)
    split = split_log(log, SplitConfig(scheme=scheme), targets)
    refitted = split.refitted("validation")
    assert refitted.in_training[split.validation.positions].all()
    assert not len(refitted.validation) and (refitted.in_training >= split.in_training).all()
    assert pairs(refitted.test["last"]) == pairs(split.test["last"])
    for queries in refitted.test.values():
        assert not refitted.in_training[queries.positions].any()
    whole = split.refitted("all")
    assert whole.in_training.all()
    assert not any(len(queries) for queries in (whole.validation, *whole.test.values()))
