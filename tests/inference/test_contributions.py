import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand, with_purchases
from helpers.shop import HELD_OUT, corrected

from jaxrec.artifacts.run_directory import COOCCURRENCE, SIMILAR_TEXT
from jaxrec.errors import InputError
from jaxrec.inference.contributions import without_item_memory


@pytest.fixture(scope="module")
def fan():
    return new_user_of_brand(3)


def test_the_parts_of_a_list_add_up_to_its_scores(model, fan, tmp_path):
    table = model.contributions(fan, "fan3", k=5)
    listed = model.recommend(fan, k=5)
    assert table["item_id"].to_list() == listed["item_id"].to_list()
    assert set(table.columns[4:]) >= {"average", "id", "text", "graph", "item_memory"}
    sums = table.select(pl.sum_horizontal(table.columns[4:])).to_series()
    assert sums.to_list() == pytest.approx(listed["score"].to_list(), abs=1e-4)
    model.plot_contributions(fan, "fan3", tmp_path / "parts.png", k=5)
    assert (tmp_path / "parts.png").read_bytes().startswith(b"\x89PNG")


def test_biases_are_parts_of_a_list(model, fan):
    biased, events = corrected(model), with_purchases(fan)
    table = biased.contributions(events, "fan3", k=20)
    parts = {"popularity", "repeat_bias", COOCCURRENCE, SIMILAR_TEXT}
    assert set(table.columns[4:]) >= parts
    sums = table.select(pl.sum_horizontal(table.columns[4:])).to_series()
    scores = biased.recommend(events, k=20)["score"].to_list()
    assert sums.to_list() == pytest.approx(scores, abs=1e-4)


def test_the_sources_of_an_item_are_its_vector(model):
    known = model.explainer.item_parts
    assert [name for _, name in known.names] == ["id", "graph", "text", "graph"]
    items = model.index.items
    vectors = np.asarray(items.vectors)
    sums = [known.vectors[:2].sum(0), known.vectors[2:].sum(0)]
    for own, whole in zip(sums, (vectors[:, :16], vectors[:, 16:]), strict=True):
        np.testing.assert_allclose(own[items.valid], whole[items.valid], atol=1e-5)


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
