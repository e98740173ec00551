"""The event log, and splits against slow ones that go through every user's events."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from jaxrec.config import SplitConfig
from jaxrec.data.events import MAX_EVENT_TYPES, build_event_log, split_log, user_of_event
from jaxrec.errors import DataError
from jaxrec.types import EventLog, Queries

ITEM_IDS = pl.Series([None, "b", "a", "c"], dtype=pl.String)
EVENTS = pl.DataFrame(
    [
        ("v", "c", 5000, "view"),
        ("u", "a", 3000, "buy"),
        ("v", "b", 1999, "view"),
        ("u", "gone", 2000, "view"),
        ("u", "b", 3000, "view"),
    ],
    schema=["user_id", "item_id", "timestamp", "event"],
    orient="row",
)
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


def test_log_is_sorted_by_user_and_time_and_ties_keep_their_file_order():
    log = build_event_log(EVENTS, ITEM_IDS)
    assert log.user_ids.to_list() == ["u", "v"]
    assert log.offsets.tolist() == [0, 3, 5]
    assert log.items.tolist() == [0, 2, 1, 1, 3]
    assert [log.event_type_names[event_type] for event_type in log.event_types] == [
        "view",
        "buy",
        "view",
        "view",
        "view",
    ]
    assert log.times.tolist() == [2, 3, 3, 1, 5]
    assert log.lengths.tolist() == [3, 2]
    assert user_of_event(log).tolist() == [0, 0, 0, 1, 1]


def test_ties_can_follow_the_item_table():
    log = build_event_log(EVENTS, ITEM_IDS, item_ties=True)
    assert log.items.tolist() == [0, 1, 2, 1, 3]
    assert [log.event_type_names[event_type] for event_type in log.event_types[:3]] == [
        "view",
        "view",
        "buy",
    ]


def test_items_that_the_catalogue_lacks_are_item_zero():
    log = build_event_log(EVENTS, pl.Series([None, "c"], dtype=pl.String))
    assert log.items.tolist() == [0, 0, 0, 0, 1]


def test_positions_are_kept_as_they_are():
    log = build_event_log(EVENTS, ITEM_IDS, has_time=False)
    assert log.times.tolist() == [2000, 3000, 3000, 1999, 5000]


def test_kinds_follow_the_given_names_and_others_are_an_error():
    log = build_event_log(EVENTS, ITEM_IDS, event_type_names=("view", "cart", "buy"))
    assert log.event_types.tolist() == [0, 2, 0, 0, 0]
    with pytest.raises(DataError, match=r"does not know: buy; it knows view, cart"):
        build_event_log(EVENTS, ITEM_IDS, event_type_names=("view", "cart"))


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
def test_global_time_holds_out_what_comes_after_the_quantiles(seed):
    log, targets = random_log(seed)
    config = SplitConfig(scheme="global_time", test_quantile=0.7, validation_quantile=0.8)
    frame = pl.DataFrame({"time": log.times.astype(float)})
    test_start = frame["time"].quantile(0.7, "linear")
    before = frame.filter(pl.col("time") <= test_start)["time"]
    validation_start = before.quantile(0.8, "linear")
    last, every, validation, train_lengths = [], [], [], []
    for user in range(log.num_users):
        start, end = log.offsets[user], log.offsets[user + 1]
        asked = [e for e in range(start + 1, end) if targets[e]]
        tested = [(user, e) for e in asked if log.times[e] > test_start]
        validated = [(user, e) for e in asked if validation_start < log.times[e] <= test_start]
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


def test_a_split_that_leaves_one_event_a_user_cannot_train():
    log = build_event_log(EVENTS.filter(user_id="u"), ITEM_IDS)
    with pytest.raises(DataError, match=r"nothing for training \(1 users, 3 events\)"):
        split_log(log, LEAVE_ONE_OUT, np.ones(3, bool))


def test_a_large_log_is_memory_mapped_and_equal(tables):
    ids = pl.concat([pl.Series([None], dtype=pl.String), tables.items["item_id"]])
    plain = build_event_log(tables.events, ids)
    mapped = build_event_log(tables.events, ids, mapped_from=len(tables.events))
    for name in ("items", "event_types", "times"):
        assert isinstance(getattr(mapped, name).base, np.memmap)
        assert not isinstance(getattr(plain, name).base, np.memmap)
        np.testing.assert_array_equal(getattr(mapped, name), getattr(plain, name))


def test_a_column_that_is_no_kind_of_event_is_refused():
    count = MAX_EVENT_TYPES + 1
    events = pl.DataFrame(
        {
            "user_id": ["u"] * count,
            "item_id": ["a"] * count,
            "timestamp": range(count),
            "event": [f"event {number}" for number in range(count)],
        }
    )
    ids = pl.Series([None, "a"])
    with pytest.raises(DataError, match=r"129 event_types \(event 0, event 1, .*128 at most"):
        build_event_log(events, ids)
    assert len(build_event_log(events[1:], ids).event_type_names) == MAX_EVENT_TYPES
