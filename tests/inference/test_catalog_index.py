import numpy as np
import polars as pl
import pytest
from helpers.shop import HELD_OUT


def test_an_untrained_item_ranks_high_for_users_who_later_chose_it(model, shop):
    is_new = pl.col("item_id") == HELD_OUT
    extended = model.with_items(shop.items.filter(is_new))
    assert extended.index.catalog.num_items == model.index.catalog.num_items + 1
    when = shop.events.filter(is_new).select("user_id", pl.col("timestamp").alias("when"))
    before = shop.events.join(when, on="user_id").filter(pl.col("timestamp") < pl.col("when"))
    ranked = extended.recommend(before.drop("when"), k=40, mask=("none",))
    ranks = ranked.filter(is_new)["rank"]
    assert len(ranks) >= 10
    # the popularity baseline is given the future counts of the item
    by_popularity = shop.events["item_id"].value_counts(sort=True)["item_id"].to_list()
    random_rank = 41 / 2
    assert ranks.mean() < 0.5 * min(by_popularity.index(HELD_OUT) + 1, random_rank)


def test_new_items_change_no_score_of_other_items(model, shop, events):
    extended = model.with_items(shop.items.filter(pl.col("item_id") == HELD_OUT))
    before = model.recommend(events, k=39, mask=("none",))
    after = extended.recommend(events, k=40, mask=("none",))
    after = after.filter(pl.col("item_id") != HELD_OUT).sort("user_id", "item_id")
    np.testing.assert_allclose(
        after["score"], before.sort("user_id", "item_id")["score"], atol=1e-4
    )
    with pytest.raises(ValueError, match="one table"):
        extended.with_items(pl.DataFrame({"item_id": ["another"]}))


def test_todays_columns_of_known_items_change_lists_and_only_what_they_say(model, shop, events):
    known = shop.items.filter(pl.col("item_id") != HELD_OUT)
    priced = model.with_items(known.with_columns(price=7.0, stock=1))
    assert priced.index.vectors is model.index.vectors
    assert priced.version == model.version
    assert set(priced.catalog.items["price"].drop_nulls()) == {7}
    assert len(model.recommend(events, k=3)) == len(
        priced.recommend(events, k=3, where="price = 7 AND stock > 0")
    )
    other = pl.col("item_id") == "i05"
    for column, value, retold in (("title", "brand z item j", [6]), ("price", 1.0, [])):
        new = pl.when(other).then(pl.lit(value)).otherwise(column).alias(column)
        today = model.with_items(known.with_columns(new)).index
        change = np.abs(np.asarray(today.text) - np.asarray(model.index.text)).max(1)
        assert np.flatnonzero(change > 1e-6).tolist() == retold
        cosines = (model.index.unit_vectors("item") * today.unit_vectors("item")).sum(1)
        assert np.flatnonzero(cosines[1:40] < 0.999).tolist() == [row - 1 for row in retold]
