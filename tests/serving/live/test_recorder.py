"""Recording events: order, duplicates, conflicts, imports and states of batch jobs."""

import re
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.live import DAY, START, assert_as_in_batch, delete, event, rescaled, table

from jaxrec.errors import InputError, StoreError
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.lists import ListRequest
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.states import state_table
from jaxrec.serving.stores.base import MAX_IDS_OF_A_SECOND, MAX_UNKNOWN, LiveEvent
from jaxrec.serving.stores.documents import encode
from jaxrec.serving.stores.retention import Retention
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_events_older_than_the_kept_ones_are_refused(engine):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}", "view", f"e{n}")) for n in range(20)]
    engine.record(user_events)
    before = engine.store.load(["u"]).documents["u"]
    assert len(before.events) <= 6
    assert before.truncated == 20 - len(before.events)
    assert engine.record([UserEvent("u", event(0, "i30"))]) == ["too_late"]
    after = engine.store.load(["u"]).documents["u"]
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
    assert engine.store.load(["u001"]).documents["u001"].events == (stored.event,)
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


def damage(engine, user, content):
    engine.store.connection.execute(
        "UPDATE shoppers SET version = 9, document = ? WHERE user_id = ?", (content, user)
    )


def other_size(engine):
    """A document whose state has another size than the model's."""
    return encode(replace(engine.document("bad"), state=np.zeros(3, np.float32)))


def no_state(engine):
    return b"\x00"


@pytest.mark.parametrize("content", [no_state, other_size])
def test_a_damaged_document_harms_only_its_user(engine, known_shop, content):
    engine.record([UserEvent(user, event(0)) for user in ("bad", "good")])
    damage(engine, "bad", content(engine))
    users = ("good", "bad", "new", "bad")
    outcomes = engine.record([UserEvent(user, event(1)) for user in users])
    assert [outcomes[0], outcomes[2]] == ["accepted", "accepted"]
    assert all(isinstance(outcomes[n], StoreError) for n in (1, 3))
    lists = engine.recommend_each(users, ListRequest(k=3))
    assert "DELETE the user" in str(lists["bad"])
    assert (lists["good"].events, lists["new"].events) == (2, 1)
    with pytest.raises(StoreError, match="user 'bad'"):
        engine.recommend(["good", "bad"], k=3)
    with pytest.raises(StoreError, match="user 'bad'"):
        engine.document("bad")
    bad = known_shop.events.head(3).with_columns(user_id=pl.lit("bad"))
    assert engine.recorder.import_users(bad) == 0
    assert delete(engine, "bad")
    later = event(int(time.time()) + DAY - START)
    assert engine.record([UserEvent("bad", later)]) == ["accepted"]
    assert engine.recommend(["good", "bad"], k=3)[1].events == 1


def test_a_user_that_others_keep_writing_harms_only_that_user(engine, monkeypatch):
    save = engine.store.save

    def save_others(documents):
        documents = list(documents)
        refused = save([d for d in documents if d.user_id != "busy"])
        return refused + [d.user_id for d in documents if d.user_id == "busy"]

    monkeypatch.setattr(engine.store, "save", save_others)
    busy, free = engine.record([UserEvent("busy", event(0)), UserEvent("free", event(0))])
    assert "keep writing user 'busy'" in str(busy)
    assert free == "accepted"


def test_unknown_items_do_not_make_a_document_grow(engine):
    user_events = [UserEvent("u", event(n, f"unknown item {n}")) for n in range(5_000)]
    engine.recorder.record_many(user_events)
    document = engine.document("u")
    assert document.positives["view"] == tuple(
        f"unknown item {n}" for n in range(5_000 - MAX_UNKNOWN, 5_000)
    )
    assert len(encode(document)) < 200_000


def test_event_ids_of_one_second_do_not_make_a_document_grow(engine):
    """Known ones stay duplicates; a further one is refused, and one a second later is not."""
    user_events = [UserEvent("u", event(0, "i01", event_id=f"event {n}")) for n in range(10_000)]
    for start in range(0, 10_000, 500):
        outcomes = engine.record(user_events[start : start + 500])
        expected = ["accepted" if start + n < 1024 else "too_late" for n in range(500)]
        assert outcomes == expected
    assert set(engine.record(user_events[:1024])) == {"duplicate"}
    assert len(encode(engine.document("u"))) < 200_000
    assert engine.record([UserEvent("u", event(0, "i02"))]) == ["accepted"]  # without an id
    assert engine.record([UserEvent("u", event(1, "i02", event_id="next"))]) == ["accepted"]


def test_the_longest_ids_are_bounded_by_their_number(engine):
    """256 characters of four bytes each; compression is not what keeps the document small."""
    for second in range(3):
        engine.record(
            [
                UserEvent("u", event(second, f"{n}{'😀' * 250}", name, f"{name} {second} {n}"))
                for n in range(600)
                for name in ("view", "buy", "dislike")
            ]
        )
    document = engine.document("u")
    assert {name: len(items) for name, items in document.positives.items()} == dict.fromkeys(
        ("view", "buy"), MAX_UNKNOWN
    )
    assert len(document.base_ids) <= MAX_IDS_OF_A_SECOND
    assert len(document.events) <= 6
    assert len(document.feedback) <= 6


def test_a_late_event_does_not_bring_a_deleted_user_back(engine, monkeypatch):
    engine.record([UserEvent("u", event(0)), UserEvent("u", event(1, "i02", "dislike"))])
    monkeypatch.setattr(time, "time", lambda: START + 10)
    assert delete(engine, "u")
    late = [event(9, event_id="a"), event(10), event(10, "i02", "dislike")]
    assert engine.record([UserEvent("u", e) for e in late]) == ["too_late"] * 3
    assert engine.store.count() == 0
    assert engine.recommend(["u"], k=3)[0].events == 0
    later = UserEvent("u", event(11, "i05"))
    outcomes = engine.record([UserEvent("u", event(9)), later, UserEvent("u", event(8))])
    assert outcomes == ["too_late", "accepted", "too_late"]
    assert engine.record([UserEvent("u", event(9))]) == ["too_late"]
    assert_as_in_batch(engine, [later])
    engine.store.expire(Retention(before=0, max_users=9, tombstones_before=START + 11))
    assert engine.record([UserEvent("u", event(9))]) == ["accepted"]


def test_an_import_does_not_bring_a_deleted_user_back(engine, model):
    user_events = [UserEvent(user, event(n * DAY)) for user in "ab" for n in range(3)]
    events = table(user_events).with_columns(pl.col("timestamp") * 1000)
    assert engine.recorder.import_users(events) == 2
    delete(engine, "a")
    assert engine.recorder.import_users(events) == 0
    assert engine.store.count() == 1
    log = model.encoder.event_log(table(user_events))
    states = state_table(log, model.encoder.states(log))
    engine.record([UserEvent("a", event(int(time.time()) + DAY - START))])
    assert engine.recorder.load_states(states) == 1  # that of the other user


def test_no_tombstone_is_left_where_times_are_positions(model, tmp_path):
    data = replace(model.config.data, time="order")
    by_order = replace(model, config=replace(model.config, data=data))
    engine = LiveEngine(by_order, SQLiteStore(tmp_path / "store.db"), window=3)
    engine.record([UserEvent("u", LiveEvent(0, "i01", "view"))])
    assert delete(engine, "u")
    assert engine.store.load(["u"]).documents == {}
    assert engine.record([UserEvent("u", LiveEvent(1, "i01", "view"))]) == ["accepted"]


@pytest.mark.parametrize("wrong", ["", "a\nb", "x" * 257, "\x00", "\u2028"])
def test_text_that_is_no_id_is_refused(engine, wrong):
    with pytest.raises(InputError, match="is no id: use 1 to 256 characters"):
        engine.record([UserEvent("u", event(0)), UserEvent(wrong, event(0))])
    assert engine.store.count() == 0
    events = table([UserEvent(user, event(0)) for user in ("u", wrong, wrong)])
    escaped = re.escape(repr(wrong)[:80])
    with pytest.raises(InputError, match=f"2 values of user_id that are no ids, first {escaped}"):
        engine.recorder.import_users(events)
    events = table([UserEvent("u", event(0)), UserEvent("u", event(0, wrong))])
    with pytest.raises(InputError, match="1 values of item_id"):
        engine.recorder.import_users(events)
    assert engine.store.count() == 0


def test_states_in_float16_give_nearly_the_same_scores(model, tmp_path):
    engines = [
        LiveEngine(model, SQLiteStore(tmp_path / name), window=8, precision=name)
        for name in ("float32", "float16")
    ]
    for n in range(60):
        for engine in engines:
            engine.record([UserEvent("u", event(n * DAY, f"i{7 * n % 40:02}"))])
    exact, rounded = (engine.recommend(["u"], k=39, mask=("none",))[0].table for engine in engines)
    assert engines[1].document("u").base.dtype == np.float16
    joined = exact.join(rounded, on="item_id", validate="1:1")
    np.testing.assert_allclose(joined["score"], joined["score_right"], atol=0.05)
    engines[0].record([UserEvent("v", event(0))])
    both = LiveEngine(model, engines[0].store, window=8, precision="float16")
    assert both.record([UserEvent("v", event(DAY))]) == ["accepted"]
    assert both.document("v").state.dtype == np.float16
