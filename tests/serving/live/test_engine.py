"""The live engine: deletion, expiry, impressions and compilation."""

from collections import defaultdict

import jax
import numpy as np
from helpers.live import DAY, START, event

from jaxrec.ranking.steps import Epsilon, Feedback, Session
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.sqlite import SQLiteStore


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
