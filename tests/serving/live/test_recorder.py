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


def test_events_from_before_the_kept_ones_are_refused_and_change_nothing(online):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}", "view", f"e{n}")) for n in range(20)]
    online.record(user_events)
    before = online.store.load(["u"])["u"]
    assert len(before.events) <= 6
    assert before.truncated == 20 - len(before.events)
    assert online.record([UserEvent("u", event(0, "i30"))]) == ["too_late"]
    after = online.store.load(["u"])["u"]
    assert (after.version, after.events) == (before.version, before.events)


def test_an_event_id_counts_once(online):
    report = UserEvent("u", event(0, "i01", "view", "once"))
    again = UserEvent("u", event(DAY, "i01", "view", "twice"))
    assert online.record([report, report]) == ["accepted", "duplicate"]
    assert online.record([again, report]) == ["accepted", "duplicate"]
    assert_as_in_batch(online, [report, again])


def test_an_event_id_counts_once_where_many_share_a_second(online):
    """Beyond what is kept: a batch that is sent again is known, and what is new is not refused."""
    user_events = [UserEvent("u", event(0, f"i{n:02}", event_id=f"e{n}")) for n in range(20)]
    assert set(online.record(user_events)) == {"accepted"}
    assert len(online.document("u").events) <= 6
    assert set(online.record(user_events)) == {"duplicate"}
    more = UserEvent("u", event(0, "i30", event_id="another"))
    assert online.record([more]) == ["accepted"]
    assert_as_in_batch(online, [*user_events, more])


def test_a_kind_that_the_model_does_not_know_is_refused_with_its_batch(online):
    with pytest.raises(ValueError, match="does not know the event type wish; use one of buy, view"):
        online.record([UserEvent("u", event(0)), UserEvent("u", event(1, event_type="wish"))])
    assert online.store.count() == 0


def test_two_processes_may_write_the_same_shopper(model, tmp_path):
    """The one that loses the race reads what the other has written, and folds behind it."""
    path = tmp_path / "store.db"
    first, second = (LiveEngine(model, SQLiteStore(path), window=3) for _ in range(2))
    mine, theirs = UserEvent("u", event(DAY, "i02")), UserEvent("u", event(0, "i01"))
    save, raced = first.store.save, []

    def save_after_the_other(documents):
        if not raced:
            raced.append(second.record([theirs]))
        return save(documents)

    first.store.save = save_after_the_other
    assert first.record([mine]) == ["accepted"]
    assert_as_in_batch(first, [theirs, mine])


def test_shoppers_enter_with_their_histories_once(online, known_shop):
    """Those who are there already keep what they have."""
    mine = UserEvent("u001", event(0, "i39"))
    online.record([mine])
    events = known_shop.events.with_columns(
        event_id=pl.format("e{}", pl.int_range(pl.len())),
        item_id=pl.when(pl.col("user_id") == "u003").then(pl.lit("new")).otherwise("item_id"),
    )
    count = events["user_id"].n_unique()
    assert online.recorder.import_users(events) == count - 1
    assert online.recorder.import_users(events) == 0
    assert online.store.load(["u001"])["u001"].events == (mine.event,)
    kept = online.document("u003").events
    assert {e.item_id for e in kept} == {"new"}  # which another model may know
    assert online.record([UserEvent("u003", kept[-1])]) == ["duplicate"]
    early = events[:1].with_columns(user_id=pl.lit("early"), timestamp=pl.lit(-5000))
    with pytest.raises(ValueError, match="before 1970"):
        online.recorder.import_users(early)
    events = events.with_columns(pl.col("timestamp") // 1000)
    some = events.filter(pl.col("user_id").is_in(["u002", "u077"]))
    expected = online.model.recommend(some, k=5)
    found = online.recommend(["u002", "u077"], k=5)
    assert [i for a in found for i in a.table["item_id"]] == expected["item_id"].to_list()


def test_a_judgement_outlives_a_flood_of_impressions(online):
    online.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])
    worst = online.recommend(["u"], k=1)[0].table["item_id"][0]
    online.record([UserEvent("u", event(2 * DAY, worst, "hide"))])
    online.record([UserEvent("u", event(2 * DAY + n, "i39", "impression")) for n in range(1, 20)])
    assert worst not in online.recommend(["u"], k=10)[0].table["item_id"].to_list()
    assert len(online.document("u").feedback) <= 1 + 2 * 3


def test_what_was_chosen_after_it_was_judged_stays_so(online):
    """Also when the choice is no longer kept."""
    online.record(
        [UserEvent("u", event(0, "i07", "dislike")), UserEvent("u", event(1, "i07", "buy"))]
    )
    online.record([UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(10, 20)])
    online.record([UserEvent("u", event(30 * DAY, "i08", "dislike"))])
    document = online.document("u")
    assert "i07" not in {e.item_id for e in document.events}
    assert [e.item_id for e in document.feedback] == ["i08"]


def test_states_of_a_batch_job_replace_what_another_model_left(online, model, trained_run):
    """Exactly, with the events that came after the job folded behind them."""
    user_events = [UserEvent("many", event(n * DAY, f"i{n:02}")) for n in range(20)]
    online.record(user_events)
    other = rescaled(model)
    renewed = LiveEngine(other, online.store, window=3)
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
    for report in more:  # until what the job has folded is no longer kept
        renewed.record([report])
        assert_as_in_batch(renewed, [*user_events, late, *more[: more.index(report) + 1]])
    assert renewed.document("many").num_in_base == 0
    assert renewed.record([UserEvent("many", event(0, "i01"))]) == ["too_late"]


def test_a_state_too_old_for_the_kept_events_is_not_called_exact(model, tmp_path):
    user_events = [UserEvent("many", event(n * DAY, f"i{n:02}")) for n in range(20)]
    log = model.encoder.event_log(table(user_events[:5]))
    states = state_table(log, model.encoder.states(log))
    online = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=2)
    online.record(user_events)
    assert online.recorder.load_states(states) == 0
    assert_as_in_batch(online, user_events)
    other = LiveEngine(rescaled(model), online.store, window=2)
    assert other.recorder.load_states(states) == 1
    assert other.recommend(["many"], k=3)[0].approximate


def test_a_store_that_others_hold_or_that_is_full_takes_nothing_and_says_so(model, tmp_path):
    path = tmp_path / "store.db"
    online = LiveEngine(model, SQLiteStore(path, timeout=0.1))
    online.record([UserEvent("u", event(0))])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            online.record([UserEvent("u", event(1))])
        other.execute("ROLLBACK")
    assert online.record([UserEvent("u", event(1))]) == ["accepted"]
    pages = online.store.connection.execute("PRAGMA page_count").fetchone()[0]
    online.store.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        online.record([UserEvent(f"v{n}", event(n)) for n in range(500)])
    assert online.store.count() == 1
    online.store.connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    assert online.record([UserEvent("v0", event(1))]) == ["accepted"]
    assert online.recommend(["u"], k=3)[0].events == 2
