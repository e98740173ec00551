"""Lists of one user: masks, conditions, words and feedback."""

import numpy as np
import pytest
from helpers.live import DAY, event
from helpers.shop import corrected

from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_words_outweigh_the_repeat_bias_by_their_strength(model, tmp_path):
    engine = LiveEngine(corrected(model), SQLiteStore(tmp_path / "store.db"))
    engine.record([UserEvent("u", event(0, "i07")), UserEvent("v", event(0, "i12", "buy"))])

    def listed(user, **options):
        return engine.recommend([user], k=5, **options)[0].table["item_id"].to_list()

    assert listed("u") == listed("u", words="nails", strength=0.0) != listed("v")
    assert listed("u", words="nails", strength=1.0) == listed("v", words="nails", strength=1.0)


def test_every_requested_user_gets_a_list(engine):
    assert engine.recommend([]) == []
    lists = engine.recommend(["u", "v", "u"], k=3)
    assert [live_list.user_id for live_list in lists] == ["u", "v", "u"]
    with pytest.raises(ValueError, match="sene"):
        engine.recommend(["u"], mask=("sene",))


def test_new_and_anonymous_users_get_recommendations(engine):
    first, second = engine.recommend(["unknown", "session:1"], k=4)
    assert first.table["item_id"].to_list() == second.table["item_id"].to_list()
    assert len(first.table) == 4
    assert first.events == 0
    assert engine.store.count() == 0


def test_mask_covers_choices_whose_events_are_truncated(engine):
    user_events = [UserEvent("u", event(n * DAY, f"i{n:02}")) for n in range(20)]
    engine.record(user_events)
    live_list = engine.recommend(["u"], k=15)[0]
    assert not set(live_list.table["item_id"]) & {f"i{n:02}" for n in range(20)}
    assert live_list.events == 20
    unmasked = engine.recommend(["u"], k=30, mask=("none",))[0]
    assert set(unmasked.table["item_id"]) & {f"i{n:02}" for n in range(20)}


def test_every_event_changes_the_next_list(engine):
    engine.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])
    before = engine.recommend(["u"], k=5)[0]
    engine.record([UserEvent("u", event(2 * DAY, "i25", "buy"))])
    after = engine.recommend(["u"], k=5)[0]
    assert before.table["item_id"].to_list() != after.table["item_id"].to_list()


def test_conditions_on_items_hold(engine):
    live_list = engine.recommend(["u"], k=5, where="price < 10")[0]
    prices = dict(engine.model.catalog.items.select("item_id", "price").drop_nulls().rows())
    assert all(prices[item] < 10 for item in live_list.table["item_id"])


def test_words_move_the_described_items_to_the_top(engine):
    engine.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])

    def listed(**options):
        return engine.recommend(["u"], k=30, **options)[0].table["item_id"].to_list()

    plain = listed()
    for brand in (1, 2, 3):
        described = f"i{brand}5"
        words = f"brand {'wxyz'[brand]} item f. brand{brand}. Beauty > Shelf {(10 * brand + 5) % 3}"
        assert listed(words=words, strength=1.0)[0] == described
        mixed = listed(words=words)
        assert mixed.index(described) < (plain.index(described) if described in plain else 30)
    assert listed(words=words, strength=0.0) == plain
    with pytest.raises(ValueError, match="not between 0 and 1"):
        engine.recommend(["u"], words=words, strength=2)
    with pytest.raises(ValueError, match="not of brand"):
        engine.recommend(["u"], words=words, target="brand")


def test_a_dislike_removes_the_item_and_lowers_similar_ones(engine):
    engine.record([UserEvent("u", event(0, "i00")), UserEvent("u", event(DAY, "i03"))])
    state = engine.store.load(["u"]).documents["u"].state
    before = engine.recommend(["u"], k=10)[0].table
    disliked = before["item_id"][0]
    dislike = UserEvent("u", event(2 * DAY, disliked, "dislike", "d1"))
    assert engine.record([dislike]) == ["accepted"]
    assert engine.record([dislike]) == ["duplicate"]
    after = engine.recommend(["u"], k=10)[0]
    assert disliked not in after.table["item_id"].to_list()
    assert "feedback" in after.table["rules"].explode().to_list()
    assert after.events == 2
    np.testing.assert_array_equal(engine.store.load(["u"]).documents["u"].state, state)
    brand = dict(engine.model.catalog.items.select("item_id", "brand").rows())
    of_brand = [
        sum(brand[item] == brand[disliked] for item in t["item_id"]) for t in (before, after.table)
    ]
    assert of_brand[1] < of_brand[0]
    # a later choice cancels the dislike
    engine.record([UserEvent("u", event(3 * DAY, disliked, "view"))])
    again = engine.recommend(["u"], k=10, mask=("none",))[0].table
    assert "feedback" not in again["rules"].explode().to_list()
