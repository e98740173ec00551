"""Live scoring equals batch scoring, for any order and any batches of events."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.live import DAY, assert_as_in_batch, event, table
from helpers.shop import corrected
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.ranking.adjustments import combine, mask_adjustments
from jaxrec.ranking.steps import Boost, Caps, Diversity, Feedback, Session
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.replay import replay
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.types import Queries

histories = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 39).map(lambda item: f"i{item:02}"),
        st.sampled_from(["view", "buy"]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=15, deadline=None)
@given(histories, st.data())
def test_states_and_lists_equal_batch_scoring(model, tmp_path_factory, choices, data):
    """For any users, histories and batches, also if neighbouring events are swapped."""
    path = tmp_path_factory.mktemp("online") / "store.db"
    engine = LiveEngine(model, SQLiteStore(path), window=2)
    user_events = [
        UserEvent(user, event(n * DAY, item, event_type, f"e{n}"))
        for n, (user, item, event_type) in enumerate(choices)
    ]
    arriving = list(user_events)
    for place in data.draw(st.sets(st.integers(0, max(len(arriving) - 2, 0)))):
        arriving[place : place + 2] = arriving[place : place + 2][::-1]
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        outcomes = engine.record(arriving[:size])
        if set(outcomes) != {"accepted"}:  # too late, as newer events are truncated already
            assert set(outcomes) <= {"accepted", "too_late"}
            return
        arriving = arriving[size:]
    assert_as_in_batch(engine, user_events)


def test_repeat_bias_equals_batch_scoring(model, tmp_path):
    """The bias counts the newest 64 events, also those that are truncated, and changes lists."""
    engine = LiveEngine(corrected(model), SQLiteStore(tmp_path / "store.db"))
    random = np.random.default_rng(1)
    user_events = [
        UserEvent(f"u{n % 3}", event(n * DAY, f"i{random.integers(40):02}", event_type))
        for n, event_type in enumerate(random.choice(["view", "buy"], 400))
    ]
    for start in range(0, len(user_events), 50):
        engine.record(user_events[start : start + 50])
    assert_as_in_batch(engine, user_events)
    lists = engine.model.recommend(table(user_events), k=5)
    assert not lists.equals(model.recommend(table(user_events), k=5, mask=("none",)))
    buys, views = (
        engine.recommend(["u0"], k=5, event_type=event_type)[0].table
        for event_type in ("buy", "view")
    )
    assert buys["item_id"].to_list() != views["item_id"].to_list()


def test_a_late_event_updates_the_state_at_its_place(engine):
    on_time = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in (0, 1, 3, 4)]
    late = UserEvent("u", event(2 * DAY, "i25", "buy"))
    assert engine.record(on_time) == ["accepted"] * 4
    assert engine.record([late]) == ["accepted"]
    assert_as_in_batch(engine, [*on_time[:2], late, *on_time[2:]])


def test_equal_times_follow_the_tie_rule_of_the_run(model, tmp_path):
    data = replace(model.config.data, ties="item_id")
    by_item = replace(model, config=replace(model.config, data=data))
    engine = LiveEngine(by_item, SQLiteStore(tmp_path / "store.db"), window=3)
    user_events = [UserEvent("u", event(0, item)) for item in ("i09", "i02", "i05")]
    for user_event in user_events:
        engine.record([user_event])
    assert_as_in_batch(engine, user_events)


def test_profiles_equal_batch_scoring(engine):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(6)]
    engine.record(user_events)
    expected = engine.model.profile(table(user_events), last=2, top=3)
    result = engine.profile(engine.document("u"), last=2, top=3)
    assert result.columns == expected.columns
    assert result["id"].to_list() == expected["id"].to_list()
    np.testing.assert_allclose(result["change"], expected["change"], atol=1e-5)


def test_strategies_give_the_lists_of_batch_scoring(model, tmp_path):
    """Sessions, feedback, boosts, caps and diversity, for histories of several sessions."""
    strategy = (
        Session(weight=0.4, gap_minutes=30),
        Feedback(item=0.3, neighbours=0.1, event_weights={"buy": -1}),
        Boost("brand = 'brand2'", by=0.5),
        Caps({"brand": 3}),
        Diversity(0.3, pool=12),
    )
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), strategy=strategy)
    user_events = [
        UserEvent(user, event(n * 1200 + (n > 3) * DAY, f"i{(7 * n + offset) % 40:02}", event_type))
        for offset, user in enumerate("abc")
        for n, event_type in enumerate(["view", "buy", "view", "view", "view", "buy"])
    ]
    engine.record(user_events)
    expected = model.recommend(table(user_events), k=6, strategy=strategy)
    plain = model.recommend(table(user_events), k=6)
    assert expected["item_id"].to_list() != plain["item_id"].to_list()
    for live_list in engine.recommend(list("abc"), k=6):
        expected_list = expected.filter(pl.col("user_id") == live_list.user_id)
        assert live_list.table["item_id"].to_list() == expected_list["item_id"].to_list()
        np.testing.assert_allclose(live_list.table["score"], expected_list["score"], atol=1e-4)
        named = {name for names in live_list.table["rules"] for name in names}
        assert {"session", "feedback"} <= named
        assert live_list.table["propensity"].to_list() == [1.0] * 6


def test_feedback_of_known_event_types_outlives_truncated_events(model, tmp_path):
    strategy = (Feedback(event_weights={"buy": -1.0}),)
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=2, strategy=strategy)
    user_events = [
        UserEvent("u", event(n * DAY, f"i{n:02}", "view" if n else "buy")) for n in range(9)
    ]
    engine.record(user_events)
    assert [e.item_id for e in engine.document("u").feedback] == ["i00"]
    expected = model.recommend(table(user_events), k=8, strategy=strategy, mask=("none",))
    result = engine.recommend(["u"], k=8, mask=("none",))[0].table
    assert result["item_id"].to_list() == expected["item_id"].to_list()


def test_feedback_of_unknown_event_types_equals_batch_scoring(engine):
    """A user with feedback only is a new user."""
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(4)]
    engine.record(user_events)
    disliked = engine.recommend(["u"], k=1)[0].table["item_id"][0]
    more = [
        UserEvent("u", event(9 * DAY, disliked, "dislike")),
        UserEvent("v", event(9 * DAY, "i05", "like")),
    ]
    engine.record(more)
    lists = engine.model.recommend(table([*user_events, *more]), k=8, strategy=(Feedback(),))
    for live_list in engine.recommend(["u", "v"], k=8):
        expected_list = lists.filter(pl.col("user_id") == live_list.user_id)
        assert expected_list["item_id"].to_list() == live_list.table["item_id"].to_list()
    with pytest.raises(ValueError, match="does not know: dislike, like; it knows buy, view"):
        engine.model.recommend(table([*user_events, *more]))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "version", [pytest.param(lambda model: model, marks=pytest.mark.slow), corrected]
)
def test_live_ranks_equal_batch_scoring_at_every_event(model, known_shop, version):
    """Frozen ranks equal batch scoring at the first event of the period."""
    model = version(model)
    log = model.encoder.validated_log(known_shop.events)
    replayed = replay(model, log, since=0.7)
    users = np.repeat(np.arange(log.num_users), log.lengths)
    begin = np.quantile(log.times, 0.7)
    held_out = np.flatnonzero(log.times > begin)
    order = held_out[np.argsort(log.times[held_out], kind="stable")]
    starts = log.offsets[users[order]]
    at_begin = np.array(
        [s + (log.times[s:p] <= begin).sum() for s, p in zip(starts, order, strict=True)]
    )
    expected = {}
    masked = mask_adjustments(log, Queries(users[order], order), model.config.evaluation.mask)
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    for name, positions in (("live", order), ("frozen", at_begin)):
        pairs = np.stack([users[order], positions], axis=1)
        moments, which = np.unique(pairs, axis=0, return_inverse=True)
        vectors = model.encoder.vectors_at(log, Queries(*moments.T))[which.ravel()]
        added = bias.adjustments(log, Queries(users[order], positions))
        queries = EvalQueries(vectors, log.items[order], combine(masked, added))
        expected[name] = rank_queries(queries, model.index.items, k=1).ranks
    for name, ranks in expected.items():
        np.testing.assert_array_equal(np.sort(replayed.ranks[name]), np.sort(ranks))
    np.testing.assert_array_equal(replayed.first.sum(), len(np.unique(users[order])))
    live, frozen = replayed.ranks["live"], replayed.ranks["frozen"]
    np.testing.assert_array_equal(live[replayed.first], frozen[replayed.first])
    assert replayed.table().row_count == 2 * (1 + len(replayed.ranks)) == 12
