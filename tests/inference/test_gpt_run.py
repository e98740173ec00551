"""A run whose text encoder is a GPT: saved, loaded, scored, with new items and live ones."""

import numpy as np
import polars as pl
import pytest
from helpers.live import change
from helpers.paths import GOLDEN
from helpers.shop import HELD_OUT
from helpers.training import untrained_run

import jaxrec
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.item_recorder import ItemRecorder
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture(scope="module", params=["frozen", "finetune"])
def model(request, known_shop, tmp_path_factory):
    options = {"model.experts": ["text"], "text.mode": request.param, "text.finetune_items": 8}
    options |= {"text.pretrained": str(GOLDEN / "tiny_gpt"), "text.whiten": 4}
    run = tmp_path_factory.mktemp(request.param) / "run"
    return jaxrec.load(untrained_run(run, known_shop, **options))


def test_users_get_lists_and_behaviour_gets_vectors(model, known_shop):
    assert model.words.encoder.pooling == "last"
    assert len(model.recommend(known_shop.events, k=2)) == 2 * 120
    table = model.behaviour_vectors(known_shop.events, last=3)
    lengths = np.linalg.norm(table["vector"].to_numpy(), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_a_new_item_has_the_text_vector_of_the_same_text_in_training(model):
    columns = ["item_id", "title", "brand", "categories"]
    item = model.catalog.items[5].select(columns).with_columns(item_id=pl.lit("new"))
    text = np.asarray(model.with_items(item).index.text)
    # a tower reads outputs of frozen layers in half precision
    np.testing.assert_allclose(text[model.catalog.num_items], text[5], atol=0.02)
    assert np.isfinite(model.words.text_vector("brand w")).all()


def test_a_live_item_has_the_text_vector_of_the_grown_catalogue(model, shop, tmp_path):
    [item] = shop.items.filter(pl.col("item_id") == HELD_OUT).to_dicts()
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"))
    columns = {name: value for name, value in item.items() if name != "item_id"}
    change(ItemRecorder(engine.catalogue, engine.store.items, 10), "put", {HELD_OUT: columns})
    engine.follow()
    live = engine.index.rows.vectors[engine.updater.item_number[HELD_OUT]]
    grown = model.with_items(pl.DataFrame([item])).index.items.vectors
    np.testing.assert_allclose(live, grown[model.catalog.num_items], atol=5e-3)
