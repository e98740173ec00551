"""Recording events: order, duplicates, conflicts, imports and states of batch jobs."""

import sqlite3
from contextlib import closing

import numpy as np
import polars as pl
import pytest
from helpers.live import DAY, assert_as_in_batch, event, rescaled, table

from jaxrec.errors import StoreError
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.states import state_table
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_events_older_than_the_kept_ones_are_refused(engine):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}", "view", f"e{n}")) for n in range(20)]
    engine.record(user_events)
    before = engine.store.load(["u"])["u"]
    assert len(before.events) <= 6
    assert before.truncated == 20 - len(before.events)
    assert engine.record([UserEvent("u", event(0, "i30"))]) == ["too_late"]
    after = engine.store.load(["u"])["u"]
    assert (after.version, after.events) == (before.version, before.events)


def test_an_event_id_counts_once(engine):
    user_event = UserEvent("u", event(0, "i01", "view", "once"))
    again = UserEvent("u", event(DAY, "i01", "view", "twice"))
    assert engine.record([user_event, user_event]) == ["accepted", "duplicate"]
    assert engine.record([again, user_event]) == ["accepted", "duplicate"]
    assert_as_in_batch(engine, [user_event, again])


def test_an_event_id_counts_once_among_many_of_one_second(engine):
    """Also beyond the kept events: a repeated batch is recognised, and a new event is accepted."""
    user_events = [UserEvent("u", event(0, f"i{n:02}", event_id=f"e{n}")) for n in range(20)]
    assert set(engine.record(user_events)) == {"accepted"}
    assert len(engine.document("u").events) <= 6
    assert set(engine.record(user_events)) == {"duplicate"}
    more = UserEvent("u", event(0, "i30", event_id="another"))
    assert engine.record([more]) == ["accepted"]
    assert_as_in_batch(engine, [*user_events, more])


def test_an_unknown_event_type_refuses_its_whole_batch(engine):
    with pytest.raises(ValueError, match="does not know the event type wish; use one of buy, view"):
        engine.record([UserEvent("u", event(0)), UserEvent("u", event(1, event_type="wish"))])
    assert engine.store.count() == 0


def test_two_processes_may_write_the_same_user(model, tmp_path):
    """The process that loses the race reads the new document and applies its event to it."""
    path = tmp_path / "store.db"
    first, second = (LiveEngine(model, SQLiteStore(path), window=3) for _ in range(2))
    later, earlier = UserEvent("u", event(DAY, "i02")), UserEvent("u", event(0, "i01"))
    save, raced = first.store.save, []

    def save_after_the_other(documents):
        if not raced:
            raced.append(second.record([earlier]))
        return save(documents)

    first.store.save = save_after_the_other
    assert first.record([later]) == ["accepted"]
    assert_as_in_batch(first, [earlier, later])


def test_histories_are_imported_once(engine, known_shop):
    """Users that the store already holds keep their events."""
    stored = UserEvent("u001", event(0, "i39"))
    engine.record([stored])
    events = known_shop.events.with_columns(
        event_id=pl.format("e{}", pl.int_range(pl.len())),
        item_id=pl.when(pl.col("user_id") == "u003").then(pl.lit("new")).otherwise("item_id"),
    )
    count = events["user_id"].n_unique()
    assert engine.recorder.import_users(events) == count - 1
    assert engine.recorder.import_users(events) == 0
    assert engine.store.load(["u001"])["u001"].events == (stored.event,)
    kept = engine.document("u003").events
    assert {e.item_id for e in kept} == {"new"}  # this model does not know the item, another may
    assert engine.record([UserEvent("u003", kept[-1])]) == ["duplicate"]
    early = events[:1].with_columns(user_id=pl.lit("early"), timestamp=pl.lit(-5000))
    with pytest.raises(ValueError, match="before 1970"):
        engine.recorder.import_users(early)
    events = events.with_columns(pl.col("timestamp") // 1000)
    two_users = events.filter(pl.col("user_id").is_in(["u002", "u077"]))
    expected = engine.model.recommend(two_users, k=5)
    result = engine.recommend(["u002", "u077"], k=5)
    assert [i for a in result for i in a.table["item_id"]] == expected["item_id"].to_list()


def test_feedback_outlives_many_impressions(engine):
    engine.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])
    hidden = engine.recommend(["u"], k=1)[0].table["item_id"][0]
    engine.record([UserEvent("u", event(2 * DAY, hidden, "hide"))])
    engine.record([UserEvent("u", event(2 * DAY + n, "i39", "impression")) for n in range(1, 20)])
    assert hidden not in engine.recommend(["u"], k=10)[0].table["item_id"].to_list()
    assert len(engine.document("u").feedback) <= 1 + 2 * 3


def test_a_choice_cancels_earlier_feedback_for_good(engine):
    """Also after the choice is truncated."""
    engine.record(
        [UserEvent("u", event(0, "i07", "dislike")), UserEvent("u", event(1, "i07", "buy"))]
    )
    engine.record([UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(10, 20)])
    engine.record([UserEvent("u", event(30 * DAY, "i08", "dislike"))])
    document = engine.document("u")
    assert "i07" not in {e.item_id for e in document.events}
    assert [e.item_id for e in document.feedback] == ["i08"]


def test_states_of_a_batch_job_replace_those_of_another_model(engine, model, trained_run):
    """The result is exact: later events are applied to the states of the job."""
    user_events = [UserEvent("many", event(n * DAY, f"i{n:02}")) for n in range(20)]
    engine.record(user_events)
    other = rescaled(model)
    renewed = LiveEngine(other, engine.store, window=3)
    log = other.encoder.event_log(table(user_events))
    late = UserEvent("many", event(30 * DAY, "i22"))
    renewed.record([late])
    assert renewed.recommend(["many"], k=3)[0].approximate
    kept = renewed.document("many").events
    assert renewed.recorder.load_states(state_table(log, other.encoder.states(log))) == 1
    assert_as_in_batch(renewed, [*user_events, late])
    assert renewed.document("many").events == kept
    profile = renewed.profile(renewed.document("many"), last=1)
    expected = other.profile(table([*user_events, late]), last=1)
    np.testing.assert_allclose(profile["before"], expected["before"], atol=1e-5)
    more = [UserEvent("many", event((31 + n) * DAY, f"i{23 + n}")) for n in range(9)]
    for user_event in more:  # until the events in the state of the job are truncated
        renewed.record([user_event])
        assert_as_in_batch(renewed, [*user_events, late, *more[: more.index(user_event) + 1]])
    assert renewed.document("many").num_in_base == 0
    assert renewed.record([UserEvent("many", event(0, "i01"))]) == ["too_late"]


def test_a_state_older_than_the_kept_events_is_approximate(model, tmp_path):
    user_events = [UserEvent("many", event(n * DAY, f"i{n:02}")) for n in range(20)]
    log = model.encoder.event_log(table(user_events[:5]))
    states = state_table(log, model.encoder.states(log))
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=2)
    engine.record(user_events)
    assert engine.recorder.load_states(states) == 0
    assert_as_in_batch(engine, user_events)
    other = LiveEngine(rescaled(model), engine.store, window=2)
    assert other.recorder.load_states(states) == 1
    assert other.recommend(["many"], k=3)[0].approximate


def test_a_locked_or_full_store_stores_nothing_and_raises(model, tmp_path):
    path = tmp_path / "store.db"
    engine = LiveEngine(model, SQLiteStore(path, timeout=0.1))
    engine.record([UserEvent("u", event(0))])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            engine.record([UserEvent("u", event(1))])
        other.execute("ROLLBACK")
    assert engine.record([UserEvent("u", event(1))]) == ["accepted"]
    pages = engine.store.connection.execute("PRAGMA page_count").fetchone()[0]
    engine.store.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        engine.record([UserEvent(f"v{n}", event(n)) for n in range(500)])
    assert engine.store.count() == 1
    engine.store.connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert engine.record([UserEvent("v0", event(1))]) == ["accepted"]
    assert engine.recommend(["u"], k=3)[0].events == 2
