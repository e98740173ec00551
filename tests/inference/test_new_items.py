"""New items get the vectors that the whole catalogue would give them, with each graph layer."""

import numpy as np
import polars as pl
import pytest
from helpers.encoders import GRAPH_ENCODERS
from helpers.live import change
from helpers.paths import GOLDEN
from helpers.shop import HELD_OUT
from helpers.training import untrained_run

import jaxrec
from jaxrec.models.graph.build import reach
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.item_recorder import ItemRecorder
from jaxrec.serving.stores.sqlite import SQLiteStore

VARIANTS = {**GRAPH_ENCODERS, "context after": {"context": "after"}}


@pytest.fixture(scope="module", params=VARIANTS)
def engine(request, known_shop, tmp_path_factory):
    """A live engine over a loaded checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    options = {f"model.{name}": value for name, value in VARIANTS[request.param].items()}
    options["model.experts"] = ["text+graph"]
    options["text.pretrained"] = str(GOLDEN / "tiny_bert")
    options["text.whiten"] = 4  # the small components of nearly equal texts are mostly rounding
    run = untrained_run(folder / "run", known_shop, **options)
    return LiveEngine(jaxrec.load(run), SQLiteStore(folder / "store.db"))


def test_a_known_item_as_a_new_one_has_the_vector_of_the_checkpoint(engine):
    encoder, index = engine.catalogue.encoder, engine.trained.index
    rows = np.array([3, 4])
    edges = encoder.edges_to(rows)
    edges = edges._replace(receivers=edges.receivers - 3)
    vectors = encoder.encode(rows, np.asarray(index.text)[rows], edges)
    np.testing.assert_allclose(vectors, np.asarray(index.vectors)[rows], atol=1e-5)


def test_a_new_item_has_the_vector_of_the_grown_catalogue(engine, shop):
    """Beyond one step, the vectors of its neighbours change as well when the catalogue grows."""
    [item] = shop.items.filter(pl.col("item_id") == HELD_OUT).to_dicts()
    columns = {name: value for name, value in item.items() if name != "item_id"}
    change(ItemRecorder(engine.catalogue, engine.store.items, 10), "put", {HELD_OUT: columns})
    engine.follow()
    live = engine.index.rows.vectors[engine.updater.item_number[HELD_OUT]]
    grown = engine.trained.with_items(pl.DataFrame([item]))
    expected = np.asarray(grown.index.items.vectors)[engine.index.num_trained]
    if reach(engine.trained.config.model) == 1:
        np.testing.assert_allclose(live, expected, atol=1e-4)
    else:
        assert live @ expected > 0.95
