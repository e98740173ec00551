import numpy as np
import polars as pl
from helpers.shop import HELD_OUT


def test_words_lead_to_the_items_of_that_text(model, shop, events):
    extended = model.with_items(shop.items.filter(pl.col("item_id") == HELD_OUT))
    users = model.encoder.vectors(model.encoder.states(model.encoder.event_log(events)))
    ids, items = extended.catalog.item_ids.to_list(), extended.words.items
    for item in ("i05", HELD_OUT):
        number = int(item[1:])
        words = f"brand {'wxyz'[number // 10]} item {'abcdefghij'[number % 10]}. "
        words += f"brand{number // 10}. Beauty > Shelf {number % 3}"
        scores = extended.words.steer(users, words, 1.0) @ items.vectors.T
        best = np.where(items.valid, scores, -np.inf).argmax(1)
        assert {ids[row] for row in best} == {item}
    unmoved = extended.words.steer(users, words, 0.0) @ items.vectors.T
    table = extended.index.items
    np.testing.assert_allclose(unmoved, users @ table.vectors.T + table.biases[None], atol=1e-4)
