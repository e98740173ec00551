import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand
from helpers.shop import HELD_OUT

from jaxrec.errors import InputError
from jaxrec.inference.contributions import parts_of, without, without_item_memory


@pytest.fixture(scope="module")
def fan():
    return new_user_of_brand(3)


def test_the_whole_is_the_probability_of_the_next_choice(model, fan, tmp_path):
    table = model.contributions(fan, "fan3", k=5)
    assert table["item_id"].to_list() == model.recommend(fan, k=5)["item_id"].to_list()
    for item, log_probability in table.select("item_id", "log_probability").iter_rows():
        (probability,) = model.audience(fan, f"item:{item}")["probability"]
        assert np.exp(log_probability) == pytest.approx(probability, rel=1e-4)
    model.plot_contributions(fan, "fan3", tmp_path / "parts.png", k=5)
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_adds_what_its_absence_takes_away(model, fan):
    table = model.contributions(fan, "fan3", k=3)
    assert set(parts_of(model)) == set(table.columns[4:]) >= {"id", "text", "graph", "item_memory"}
    for part in ("text", "graph", "item_memory"):
        bare = without(model, part)
        for row in table.iter_rows(named=True):
            (probability,) = bare.audience(fan, f"item:{row['item_id']}")["probability"]
            assert row["log_probability"] - row[part] == pytest.approx(
                np.log(probability), abs=1e-3
            )


def test_an_item_without_its_id_is_a_new_item(model, known_shop):
    copied = known_shop.items.filter(pl.col("item_id") == "i30")
    today = model.with_items(copied.with_columns(item_id=pl.lit("copy")))
    (row,) = (model.catalog.item_ids == "i30").arg_true()
    new = today.index.host_vectors("item")[len(model.catalog.items)]
    np.testing.assert_allclose(without(model, "id").index.host_vectors("item")[row], new, atol=5e-3)


def test_items_differ_without_a_source(model):
    whole = model.index.host_vectors("item")
    for part in ("id", "text", "graph"):
        assert np.abs(without(model, part).index.host_vectors("item") - whole).max() > 0.01


def test_without_item_memory_the_readout_does_not_count(model):
    outputs = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    halves = np.split(outputs.copy(), 4, axis=1)
    halves[1][:] = halves[3][:] = 0  # interest and readout of two experts
    targets = jnp.full(3, -1)
    closed = without_item_memory(model.model).merge().user_vectors(jnp.asarray(outputs), targets)
    no_readout = model.model.merge().user_vectors(jnp.asarray(np.hstack(halves)), targets)
    np.testing.assert_allclose(closed, no_readout, rtol=1e-5, atol=1e-6)


def test_bad_requests_say_what_is_wrong(model, fan, shop, tmp_path):
    with pytest.raises(InputError, match="no user 'x'"):
        model.contributions(fan, "x")
    with pytest.raises(InputError, match="name a file ending in"):
        model.plot_contributions(fan, "fan3", tmp_path / "parts.svg")
    today = model.with_items(shop.items)
    assert HELD_OUT in today.catalog.item_ids
    with pytest.raises(InputError, match="items of training"):
        today.contributions(fan, "fan3")
