"""Lists of one user: masks, conditions, words and feedback."""

import numpy as np
import pytest
from helpers.live import DAY, event
from helpers.shop import corrected

from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_words_outweigh_what_is_familiar_by_their_strength(model, tmp_path):
    online = LiveEngine(corrected(model), SQLiteStore(tmp_path / "store.db"))
    online.record([UserEvent("u", event(0, "i07")), UserEvent("v", event(0, "i12", "buy"))])

    def listed(user, **options):
        return online.recommend([user], k=5, **options)[0].table["item_id"].to_list()

    assert listed("u") == listed("u", words="nails", strength=0.0) != listed("v")
    assert listed("u", words="nails", strength=1.0) == listed("v", words="nails", strength=1.0)


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
