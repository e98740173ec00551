"""The event log: its order, its codes and its event types."""

import numpy as np
import polars as pl
import pytest
from helpers.histories import log_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.events import MAX_EVENT_TYPES, build_event_log, last_sessions, user_of_event
from jaxrec.errors import DataError

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


def test_log_is_sorted_by_user_and_time_and_ties_keep_their_file_order():
    log = build_event_log(EVENTS, ITEM_IDS)
    assert log.user_ids.to_list() == ["u", "v"]
    assert log.offsets.tolist() == [0, 3, 5]
    assert log.items.tolist() == [0, 2, 1, 1, 3]
    assert log.event_type_names == ("buy", "view")
    assert log.event_types.tolist() == [1, 0, 1, 1, 1]
    assert log.times.tolist() == [2, 3, 3, 1, 5]
    assert log.lengths.tolist() == [3, 2]
    assert user_of_event(log).tolist() == [0, 0, 0, 1, 1]


def test_ties_can_follow_the_item_table():
    log = build_event_log(EVENTS, ITEM_IDS, item_ties=True)
    assert log.items.tolist() == [0, 1, 2, 1, 3]
    assert log.event_types[:3].tolist() == [1, 1, 0]


def test_items_that_are_not_in_the_catalogue_are_item_zero():
    log = build_event_log(EVENTS, pl.Series([None, "c"], dtype=pl.String))
    assert log.items.tolist() == [0, 0, 0, 0, 1]


def test_positions_stay_unchanged():
    log = build_event_log(EVENTS, ITEM_IDS, has_time=False)
    assert log.times.tolist() == [2000, 3000, 3000, 1999, 5000]


def test_event_types_follow_the_given_names_and_others_are_an_error():
    log = build_event_log(EVENTS, ITEM_IDS, event_type_names=("view", "cart", "buy"))
    assert log.event_types.tolist() == [0, 2, 0, 0, 0]
    with pytest.raises(DataError, match=r"does not know: buy; it knows view, cart"):
        build_event_log(EVENTS, ITEM_IDS, event_type_names=("view", "cart"))


def test_a_large_log_is_memory_mapped_and_equal(tables):
    ids = pl.concat([pl.Series([None], dtype=pl.String), tables.items["item_id"]])
    plain = build_event_log(tables.events, ids)
    mapped = build_event_log(tables.events, ids, mapped_from=len(tables.events))
    for name in ("items", "event_types", "times"):
        assert isinstance(getattr(mapped, name).base, np.memmap)
        assert not isinstance(getattr(plain, name).base, np.memmap)
        np.testing.assert_array_equal(getattr(mapped, name), getattr(plain, name))


def test_too_many_event_types_are_refused():
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
    with pytest.raises(DataError, match=r"129 event types \(such as 'event 0'\), .*at most 128"):
        build_event_log(events, ids)
    assert len(build_event_log(events[1:], ids).event_type_names) == MAX_EVENT_TYPES


DAY, MINUTE = 86_400, 60


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 200), max_size=8), min_size=1, max_size=5))
def test_the_last_session_begins_after_the_last_pause(minutes):
    histories = [[(n + 1, "view", MINUTE * m) for n, m in enumerate(sorted(h))] for h in minutes]
    sessions = last_sessions(log_of(*histories), gap=30 * MINUTE)
    for user, history in enumerate(histories):
        expected = []
        for event in reversed(history):
            if expected and expected[-1][2] - event[2] > 30 * MINUTE:
                break
            expected.append(event)
        part = slice(sessions.offsets[user], sessions.offsets[user + 1])
        assert sessions.items[part].tolist() == [item for item, _, _ in reversed(expected)]
        assert sessions.times[part].tolist() == [time for _, _, time in reversed(expected)]


def test_positions_have_no_pauses():
    log = log_of([(1, "view", 0), (2, "view", 10**6)], has_time=False)
    assert last_sessions(log, 1).items.tolist() == [1, 2]
