"""The live engine: deletion, expiry, impressions and compilation."""

import jax
import numpy as np
import pytest
from helpers.live import DAY, START, delete, event

from jaxrec.ranking.steps import Epsilon, Feedback, Session
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.retention import Retention
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_a_deleted_user_leaves_nothing(engine):
    engine.record([UserEvent("u", event(0)), UserEvent("v", event(0))])
    assert delete(engine, "u")
    assert not delete(engine, "u")
    assert engine.store.count() == 1
    assert engine.recommend(["u"], k=3)[0].events == 0


def test_old_and_surplus_users_expire(engine):
    for user in "abcd":
        engine.record([UserEvent(user, event(0))])
    assert engine.store.expire(Retention(before=0, max_users=3)) == 1
    assert set(engine.store.load("abcd").documents) == set("bcd")
    assert engine.store.expire(Retention(before=4e9, max_users=3)) == 3


def test_random_lists_are_stored_with_propensities_and_deleted(model, tmp_path):
    engine = LiveEngine(
        model,
        SQLiteStore(tmp_path / "store.db"),
        strategy=(Epsilon(0.5, pool=20),),
        random=np.random.default_rng(3),
    )
    engine.record([UserEvent("u", event(0, "i00"))])
    lists = [engine.recommend(["u", "v"], k=5) for _ in range(4)]
    impressions = engine.store.impressions("u")
    assert [list(s.items) for s in impressions] == [a[0].table["item_id"].to_list() for a in lists]
    assert [list(s.propensities) for s in impressions] == [
        a[0].table["propensity"].to_list() for a in lists
    ]
    assert len({s.items for s in impressions}) > 1
    assert all(0 < p <= 1 for s in impressions for p in s.propensities)
    delete(engine, "u")
    assert engine.store.impressions("u") == []
    assert len(engine.store.impressions("v")) == 4
    engine.store.expire(Retention(before=4e9, max_users=10))
    assert engine.store.impressions("v") == []


@pytest.mark.thorough
def test_no_request_to_a_warm_model_waits_for_a_compilation(model, tmp_path):
    engine = LiveEngine(
        model, SQLiteStore(tmp_path / "store.db"), strategy=[Feedback(), Session(0.5)]
    )
    jax.clear_caches()  # compilations of other tests would hide those of this one
    engine.warm_up()
    traced = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: traced.append(name) if "trace" in name else None
    )
    for users, events in ((1, 1), (3, 4), (70, 9)):
        names = [f"{n} of {users}" for n in range(users)]
        engine.record(
            [UserEvent(u, event(n * DAY, f"i{n:02}")) for n in range(events) for u in names]
        )
        for target, k in (("item", 5), ("item", 20), ("brand", 2)):
            engine.recommend(names, k, target=target)
        engine.recommend(names, 5, event_type="buy", now=START)
        engine.recommend(names, 5, words="a red lipstick")
        document = engine.document(names[0])
        engine.profile(document)
        engine.interest_history(document)
    assert not traced


def test_a_search_by_codes_gives_the_same_lists(model, tmp_path):
    """Of items, with a condition and with words."""
    engines = [
        LiveEngine(model, SQLiteStore(tmp_path / f"{precision}.db"), item_precision=precision)
        for precision in ("float32", "int8")
    ]
    tables = []
    for engine in engines:
        engine.record([UserEvent("u", event(n, f"i{n:02}")) for n in range(4)])
        requests = ({}, {"where": "price < 10"}, {"words": "nails", "strength": 0.5})
        tables.append([engine.recommend(["u"], k=5, **request)[0].table for request in requests])
    for exact, coded in zip(*tables, strict=True):
        assert coded["item_id"].to_list() == exact["item_id"].to_list()
        np.testing.assert_allclose(coded["score"], exact["score"], rtol=1e-4, atol=1e-4)
