"""Live states equal those of batch scoring, whatever the order and the batches events come in."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
from helpers.shop import corrected
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.errors import StoreError
from jaxrec.inference import loading
from jaxrec.ranking.steps import Boost, Caps, Diversity, Epsilon, Feedback, Session
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.live.state_updater import Update
from jaxrec.serving.states import state_table
from jaxrec.serving.stores.base import LiveEvent
from jaxrec.serving.stores.sqlite import SQLiteStore

START = 1_704_067_200
DAY = 86_400


@pytest.fixture(scope="module")
def model(trained_run):
    return loading.load(trained_run)


@pytest.fixture
def online(model, tmp_path):
    return LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=3)


def rescaled(model):
    """Another model over the same catalogue."""
    return replace(model, index=replace(model.index, vectors=model.index.vectors * 1.5))


def event(time, item="i01", event_type="view", event_id=None):
    return LiveEvent(START + time, item, event_type, event_id)


def table(user_events):
    return pl.DataFrame(
        {
            "user_id": [r.user_id for r in user_events],
            "item_id": [r.event.item_id for r in user_events],
            "event": [r.event.event_type for r in user_events],
            "timestamp": [r.event.time for r in user_events],
        }
    )


def assert_as_in_batch(online, user_events):
    """States and lists of all users equal those of batch scoring over the same events."""
    model = online.model
    log = model.encoder.event_log(table(user_events))
    expected = np.concatenate(
        [
            np.asarray(leaf).reshape(log.num_users, -1)
            for leaf in jax.tree.leaves(model.encoder.states(log))
        ],
        axis=1,
    )
    documents = online.store.load(log.user_ids.to_list())
    for user, state in zip(log.user_ids, expected, strict=True):
        np.testing.assert_allclose(documents[user].state, state, atol=1e-5)
    lists = model.recommend(table(user_events), k=5)
    answers = online.recommend(log.user_ids.to_list(), k=5)
    for answer in answers:
        theirs = lists.filter(pl.col("user_id") == answer.user_id).drop("user_id")
        np.testing.assert_allclose(answer.table["score"], theirs["score"], atol=1e-4)
        assert answer.table["item_id"].to_list() == theirs["item_id"].to_list()
        assert not answer.approximate


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
def test_states_are_those_of_batch_scoring(model, tmp_path_factory, choices, data):
    """Whatever users, histories and batches; also where neighbouring events swap their places."""
    path = tmp_path_factory.mktemp("online") / "store.db"
    online = LiveEngine(model, SQLiteStore(path), window=2)
    user_events = [
        UserEvent(user, event(n * DAY, item, event_type, f"e{n}"))
        for n, (user, item, event_type) in enumerate(choices)
    ]
    arriving = list(user_events)
    for place in data.draw(st.sets(st.integers(0, max(len(arriving) - 2, 0)))):
        arriving[place : place + 2] = arriving[place : place + 2][::-1]
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        outcomes = online.record(arriving[:size])
        if set(outcomes) != {"accepted"}:  # swapped beyond what is kept: nothing to compare
            assert set(outcomes) <= {"accepted", "too_late"}
            return
        arriving = arriving[size:]
    assert_as_in_batch(online, user_events)


def test_what_is_familiar_counts_as_in_batch_scoring(model, tmp_path):
    """Of the newest 64 events, whatever is kept beside them; it moves items to the top."""
    online = LiveEngine(corrected(model), SQLiteStore(tmp_path / "store.db"))
    random = np.random.default_rng(1)
    user_events = [
        UserEvent(f"u{n % 3}", event(n * DAY, f"i{random.integers(40):02}", event_type))
        for n, event_type in enumerate(random.choice(["view", "buy"], 400))
    ]
    for start in range(0, len(user_events), 50):
        online.record(user_events[start : start + 50])
    assert_as_in_batch(online, user_events)
    lists = online.model.recommend(table(user_events), k=5)
    assert not lists.equals(model.recommend(table(user_events), k=5, mask=("none",)))
    buys, views = (
        online.recommend(["u0"], k=5, event_type=event_type)[0].table
        for event_type in ("buy", "view")
    )
    assert buys["item_id"].to_list() != views["item_id"].to_list()


def test_words_outweigh_what_is_familiar_by_their_strength(model, tmp_path):
    online = LiveEngine(corrected(model), SQLiteStore(tmp_path / "store.db"))
    online.record([UserEvent("u", event(0, "i07")), UserEvent("v", event(0, "i12", "buy"))])

    def listed(user, **options):
        return online.recommend([user], k=5, **options)[0].table["item_id"].to_list()

    assert listed("u") == listed("u", words="nails", strength=0.0) != listed("v")
    assert listed("u", words="nails", strength=1.0) == listed("v", words="nails", strength=1.0)


def test_a_late_event_is_folded_in_its_place(online):
    on_time = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in (0, 1, 3, 4)]
    late = UserEvent("u", event(2 * DAY, "i25", "buy"))
    assert online.record(on_time) == ["accepted"] * 4
    assert online.record([late]) == ["accepted"]
    assert_as_in_batch(online, [*on_time[:2], late, *on_time[2:]])


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


def test_a_list_a_user_however_they_are_named(online):
    assert online.recommend([]) == []
    answers = online.recommend(["u", "v", "u"], k=3)
    assert [answer.user_id for answer in answers] == ["u", "v", "u"]
    with pytest.raises(ValueError, match="sene"):
        online.recommend(["u"], mask=("sene",))


def test_newcomers_and_anonymous_users_get_recommendations(online):
    first, second = online.recommend(["nobody", "session:1"], k=4)
    assert first.table["item_id"].to_list() == second.table["item_id"].to_list()
    assert len(first.table) == 4
    assert first.events == 0
    assert online.store.count() == 0


def test_what_was_chosen_is_masked_long_after_its_event_is_forgotten(online):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(20)]
    online.record(user_events)
    answer = online.recommend(["u"], k=15)[0]
    assert not set(answer.table["item_id"]) & {f"i{n:02}" for n in range(20)}
    assert answer.events == 20
    unmasked = online.recommend(["u"], k=30, mask=("none",))[0]
    assert set(unmasked.table["item_id"]) & {f"i{n:02}" for n in range(20)}


def test_every_event_moves_the_next_list(online):
    online.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])
    before = online.recommend(["u"], k=5)[0]
    online.record([UserEvent("u", event(2 * DAY, "i25", "buy"))])
    after = online.recommend(["u"], k=5)[0]
    assert before.table["item_id"].to_list() != after.table["item_id"].to_list()


def test_conditions_on_items_hold(online):
    answer = online.recommend(["u"], k=5, where="price < 10")[0]
    prices = dict(online.model.index.catalog.items.select("item_id", "price").drop_nulls().rows())
    assert all(prices[item] < 10 for item in answer.table["item_id"])


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


def test_another_model_rebuilds_states_and_says_what_they_lack(online, model):
    few = [UserEvent("few", event(n * DAY, f"i{n:02}")) for n in range(4)]
    many = [UserEvent("many", event(n * DAY, f"i{n:02}")) for n in range(20)]
    online.record([*few, *many])
    other = rescaled(model)
    renewed = LiveEngine(other, online.store, window=3)
    exact, rebuilt = renewed.recommend(["few", "many"], k=3)
    assert (exact.approximate, rebuilt.approximate) == (False, True)
    assert rebuilt.events == 20
    renewed.record(
        [UserEvent("few", event(30 * DAY, "i20")), UserEvent("many", event(30 * DAY, "i20"))]
    )
    few.append(UserEvent("few", event(30 * DAY, "i20")))
    assert_as_in_batch(renewed, few)
    assert renewed.recommend(["many"], k=3)[0].approximate


def test_a_rebuilt_state_is_that_of_its_document_whatever_comes_late(online, model):
    online.record([UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(20)])
    other = LiveEngine(rescaled(model), online.store, window=3)
    assert other.record([UserEvent("u", event(19 * DAY - 60, "i33"))]) == ["accepted"]
    for number in range(8):
        document = other.document("u")
        [expected] = other.updater.apply([Update(*document.base_state, document.events_after_base)])
        np.testing.assert_allclose(document.state, expected, atol=1e-5)
        other.record([UserEvent("u", event((20 + number) * DAY, f"i{number:02}"))])
    assert other.document("u").base is not None


def test_equal_times_are_in_the_order_that_the_run_knows(model, tmp_path):
    data = replace(model.config.data, ties="item_id")
    by_item = replace(model, config=replace(model.config, data=data))
    online = LiveEngine(by_item, SQLiteStore(tmp_path / "store.db"), window=3)
    user_events = [UserEvent("u", event(0, item)) for item in ("i09", "i02", "i05")]
    for report in user_events:
        online.record([report])
    assert_as_in_batch(online, user_events)


def test_forgetting_leaves_nothing(online):
    online.record([UserEvent("u", event(0)), UserEvent("v", event(0))])
    assert online.delete_user("u")
    assert not online.delete_user("u")
    assert online.store.count() == 1
    assert online.recommend(["u"], k=3)[0].events == 0


def test_old_and_surplus_shoppers_expire(online):
    by_user = defaultdict(list)
    for user in "abcd":
        by_user[user] = online.record([UserEvent(user, event(0))])
    assert online.store.expire(before=0, max_users=3) == 1
    assert set(online.store.load("abcd")) == set("bcd")
    assert online.store.expire(before=4e9, max_users=3) == 3


def test_words_steer_the_list_to_the_items_that_they_describe(online):
    online.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])

    def listed(**options):
        return online.recommend(["u"], k=30, **options)[0].table["item_id"].to_list()

    plain = listed()
    for brand in (1, 2, 3):
        described = f"i{brand}5"
        words = f"brand {'wxyz'[brand]} item f. brand{brand}. Beauty > Shelf {(10 * brand + 5) % 3}"
        assert listed(words=words, strength=1.0)[0] == described
        mixed = listed(words=words)
        assert mixed.index(described) < (plain.index(described) if described in plain else 30)
    assert listed(words=words, strength=0.0) == plain
    with pytest.raises(ValueError, match="not between 0 and 1"):
        online.recommend(["u"], words=words, strength=2)
    with pytest.raises(ValueError, match="not of brand"):
        online.recommend(["u"], words=words, target="brand")


def test_a_profile_is_that_of_batch_scoring(online):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(6)]
    online.record(user_events)
    expected = online.model.profile(table(user_events), last=2, top=3)
    found = online.profile(online.document("u"), last=2, top=3)
    assert found.columns == expected.columns
    assert found["id"].to_list() == expected["id"].to_list()
    np.testing.assert_allclose(found["change"], expected["change"], atol=1e-5)


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


def test_a_strategy_makes_live_lists_as_it_makes_those_of_a_batch(model, tmp_path):
    """Sessions, feedback, boosts, caps and diversity, for histories of several sessions."""
    strategy = (
        Session(weight=0.4, gap_minutes=30),
        Feedback(item=0.3, neighbours=0.1, event_weights={"buy": -1}),
        Boost("brand = 'brand2'", by=0.5),
        Caps({"brand": 3}),
        Diversity(0.3, pool=12),
    )
    online = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), strategy=strategy)
    user_events = [
        UserEvent(user, event(n * 1200 + (n > 3) * DAY, f"i{(7 * n + offset) % 40:02}", event_type))
        for offset, user in enumerate("abc")
        for n, event_type in enumerate(["view", "buy", "view", "view", "view", "buy"])
    ]
    online.record(user_events)
    expected = model.recommend(table(user_events), k=6, strategy=strategy)
    plain = model.recommend(table(user_events), k=6)
    assert expected["item_id"].to_list() != plain["item_id"].to_list()
    for answer in online.recommend(list("abc"), k=6):
        theirs = expected.filter(pl.col("user_id") == answer.user_id)
        assert answer.table["item_id"].to_list() == theirs["item_id"].to_list()
        np.testing.assert_allclose(answer.table["score"], theirs["score"], atol=1e-4)
        named = {name for names in answer.table["rules"] for name in names}
        assert {"session", "feedback"} <= named
        assert answer.table["propensity"].to_list() == [1.0] * 6


def test_what_is_disliked_goes_with_its_like_although_the_model_knows_no_dislike(online):
    online.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])
    state = online.store.load(["u"])["u"].state
    before = online.recommend(["u"], k=10)[0].table
    worst = before["item_id"][0]
    assert online.record([UserEvent("u", event(2 * DAY, worst, "dislike", "d1"))]) == ["accepted"]
    assert online.record([UserEvent("u", event(2 * DAY, worst, "dislike", "d1"))]) == ["duplicate"]
    after = online.recommend(["u"], k=10)[0]
    assert worst not in after.table["item_id"].to_list()
    assert "feedback" in after.table["rules"].explode().to_list()
    assert after.events == 2
    np.testing.assert_array_equal(online.store.load(["u"])["u"].state, state)
    brand = dict(online.model.index.catalog.items.select("item_id", "brand").rows())
    alike = [
        sum(brand[item] == brand[worst] for item in t["item_id"]) for t in (before, after.table)
    ]
    assert alike[1] < alike[0]
    online.record([UserEvent("u", event(3 * DAY, worst, "view"))])  # changed their mind
    again = online.recommend(["u"], k=10, mask=("none",))[0].table
    assert "feedback" not in again["rules"].explode().to_list()


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


def test_judgements_that_the_model_knows_outlive_their_events(model, tmp_path):
    strategy = (Feedback(event_weights={"buy": -1.0}),)
    online = LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=2, strategy=strategy)
    user_events = [
        UserEvent("u", event(n * DAY, f"i{n:02}", "view" if n else "buy")) for n in range(9)
    ]
    online.record(user_events)
    assert [e.item_id for e in online.document("u").feedback] == ["i00"]
    expected = model.recommend(table(user_events), k=8, strategy=strategy, mask=("none",))
    found = online.recommend(["u"], k=8, mask=("none",))[0].table
    assert found["item_id"].to_list() == expected["item_id"].to_list()


def test_states_of_who_has_only_judged_are_a_newcomers(model):
    events = table([UserEvent("a", event(0)), UserEvent("b", event(9, event_type="hide"))])
    log = model.encoder.known_events(model.encoder.event_log(events, ["hide"]))
    states = state_table(log, model.encoder.states(log))
    assert states.select("user_id", "events", "last_time").rows() == [("a", 1, START), ("b", 0, -1)]
    online = LiveEngine(model, SQLiteStore(":memory:"))
    online.record([UserEvent("b", event(5))])
    assert online.recorder.load_states(states) == 0
    nobody = model.encoder.known_events(model.encoder.event_log(events[1:], ["hide"]))
    assert len(state_table(nobody, model.encoder.states(nobody))) == 1


def test_batch_lists_hear_judgements_that_the_model_does_not_know(online):
    """As live ones do; who has only judged is a newcomer."""
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(4)]
    online.record(user_events)
    judged = online.recommend(["u"], k=1)[0].table["item_id"][0]
    more = [
        UserEvent("u", event(9 * DAY, judged, "dislike")),
        UserEvent("v", event(9 * DAY, "i05", "like")),
    ]
    online.record(more)
    lists = online.model.recommend(table([*user_events, *more]), k=8, strategy=(Feedback(),))
    for answer in online.recommend(["u", "v"], k=8):
        theirs = lists.filter(pl.col("user_id") == answer.user_id)
        assert theirs["item_id"].to_list() == answer.table["item_id"].to_list()
    with pytest.raises(ValueError, match="does not know: dislike, like; it knows buy, view"):
        online.model.recommend(table([*user_events, *more]))


def test_what_chance_has_shown_is_kept_with_its_propensities_and_forgotten(model, tmp_path):
    online = LiveEngine(
        model,
        SQLiteStore(tmp_path / "store.db"),
        strategy=(Epsilon(0.5, pool=20),),
        random=np.random.default_rng(3),
    )
    online.record([UserEvent("u", event(0, "i00"))])
    lists = [online.recommend(["u", "v"], k=5) for _ in range(4)]
    shown = online.store.impressions("u")
    assert [list(s.items) for s in shown] == [a[0].table["item_id"].to_list() for a in lists]
    assert [list(s.propensities) for s in shown] == [
        a[0].table["propensity"].to_list() for a in lists
    ]
    assert len({s.items for s in shown}) > 1
    assert all(0 < p <= 1 for s in shown for p in s.propensities)
    online.delete_user("u")
    assert online.store.impressions("u") == []
    assert len(online.store.impressions("v")) == 4
    online.store.expire(before=4e9, max_users=10)
    assert online.store.impressions("v") == []


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


def test_no_request_to_a_warm_model_waits_for_a_compilation(model, tmp_path):
    online = LiveEngine(
        model, SQLiteStore(tmp_path / "store.db"), strategy=[Feedback(), Session(0.5)]
    )
    jax.clear_caches()  # what other tests have compiled must not hide anything
    online.warm_up()
    traced = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: traced.append(name) if "trace" in name else None
    )
    for users, events in ((1, 1), (3, 4), (70, 9)):
        names = [f"{n} of {users}" for n in range(users)]
        online.record(
            [UserEvent(u, event(n * DAY, f"i{n:02}")) for n in range(events) for u in names]
        )
        for target, k in (("item", 5), ("item", 20), ("brand", 2)):
            online.recommend(names, k, target=target)
        online.recommend(names, 5, event_type="buy", now=START)
        online.recommend(names, 5, words="a red lipstick")
        document = online.document(names[0])
        online.profile(document)
        online.interest_history(document)
    assert not traced
