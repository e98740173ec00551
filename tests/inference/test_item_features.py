"""Vectors and numbers of items from training to lists: checkpoint, new items, live items."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.live import change
from helpers.shop import HELD_OUT
from helpers.training import config, untrained_run

import jaxrec
from jaxrec.artifacts.run_directory import read_artifacts
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.errors import DataError
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.item_recorder import ItemRecorder
from jaxrec.serving.stores.items import ItemDocument
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.training.context import make_context
from jaxrec.training.fit import fit

OPTIONS = {
    "model.experts": ["id+graph+vectors+numbers"],
    "data.numeric_columns": ["price", "weight"],
    "train.seed": 1,
}
ROUNDING = 1e-4


def with_features(tables, seed=0):
    """The tables with vectors of six numbers for four items in five, and a weight for most."""
    random = np.random.default_rng(seed)
    count = len(tables.items)
    vectors = random.normal(size=(count, 6)).astype(np.float32).tolist()
    columns = {
        "image": pl.Series([None if n % 5 == 4 else v for n, v in enumerate(vectors)]),
        "weight": pl.Series([None if n % 3 == 2 else float(n) for n in range(count)]),
    }
    if "price" not in tables.items.columns:
        columns["price"] = pl.Series([0.5 * n for n in range(count)])
    return replace(tables, items=tables.items.with_columns(**columns))


@pytest.fixture(scope="module")
def featured(shop):
    return with_features(shop)


@pytest.fixture(scope="module")
def known(featured):
    """The tables without one item."""
    known = pl.col("item_id") != HELD_OUT
    return validate_tables(featured.events.filter(known), featured.items.filter(known), None)


@pytest.fixture(scope="module")
def run(known, tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("features") / "run", known, **OPTIONS)


@pytest.fixture(scope="module")
def model(run):
    return jaxrec.load(run)


@pytest.fixture
def engine(model, tmp_path):
    return LiveEngine(model, SQLiteStore(tmp_path / "store.db"))


def columns_of(items, item):
    [row] = items.filter(pl.col("item_id") == item).to_dicts()
    return {name: value for name, value in row.items() if name != "item_id"}


def live_vector(engine, item):
    return engine.index.rows.vectors[engine.updater.item_number[item]]


def batch_vector(model, item):
    row = (model.catalog.item_ids == item).arg_true()[0]
    return np.asarray(model.index.items.vectors)[row]


def put(engine, operation="put", **items):
    recorder = ItemRecorder(engine.catalogue, engine.store.items, 100)
    outcomes = change(recorder, operation, items)
    engine.follow()
    return outcomes


def test_the_run_knows_its_features(run):
    artifacts = read_artifacts(run)
    assert artifacts.sizes.vectors == (("image", 7),)
    assert artifacts.sizes.numbers == ("price", "weight")
    assert artifacts.features.raw_widths == {"image": 6}


def test_a_loaded_model_encodes_the_same_vectors(run, model, featured):
    """All items as today's, so all of them are encoded from the files of the run."""
    columns = ["item_id", "image", "weight", "price"]
    again = model.with_items(featured.items.select(columns))
    rows = model.catalog.num_items
    np.testing.assert_allclose(
        np.asarray(again.index.items.vectors)[:rows],
        np.asarray(model.index.items.vectors)[:rows],
        atol=ROUNDING,
    )


def test_every_feature_of_todays_items_reaches_their_vectors(model, featured):
    base = columns_of(featured.items, HELD_OUT)
    changes = {"image": [3.0, -1, 0, 2, 0, 1], "weight": 0.0, "price": None}
    rows = [{"item_id": "same", **base}]
    rows += [{"item_id": name, **base, name: value} for name, value in changes.items()]
    rows.append({"item_id": "i05", **columns_of(featured.items, "i05"), "image": None})
    today = model.with_items(pl.DataFrame(rows, infer_schema_length=None))
    same = batch_vector(today, "same")
    for name in changes:
        assert np.abs(batch_vector(today, name) - same).max() > 1e-3, name
    assert np.abs(batch_vector(today, "i05") - batch_vector(model, "i05")).max() > 1e-3


def test_items_of_another_shop_have_features_too(model, featured):
    items = featured.items.select("item_id", "brand", "image", "weight", "price")
    other = model.for_shop(items)
    assert f"32 of {len(items)} items have a vector in the column image" in other.notes
    assert f"27 of {len(items)} items have a number in weight" in other.notes
    lacking = model.for_shop(items.rename({"image": "photo", "weight": "grams"}))
    assert f"0 of {len(items)} items have a vector in the column image" in lacking.notes
    assert f"0 of {len(items)} items have a number in weight" in lacking.notes
    assert any("does not read the vectors of photo" in note for note in lacking.notes)
    known, moved = (batch_vector(shop, "i05") for shop in (other, lacking))
    assert np.abs(known - moved).max() > 1e-3


@pytest.mark.thorough
def test_one_column_of_vectors_alone_is_an_expert(featured, tmp_path):
    run = tmp_path / "run"
    options = {"model.experts": ["image"], "train.epochs": 1, "train.auxiliary_weight": 0.0}
    fit(config(**options), run, tables=featured)
    model = jaxrec.load(run)
    assert model.artifacts.sizes.vectors == (("image", 7),)
    user = featured.events.filter(user_id="u000")
    table = model.recommend(user, k=5, mask=("none",))
    assert table["item_id"].n_unique() == 5 and table["score"].is_finite().all()
    spread = np.asarray(model.index.items.vectors)[1:41]
    assert np.abs(spread - spread[0]).max() > 1e-3
    today = model.with_items(pl.DataFrame({"item_id": ["new"], "image": [[1.0, 0, 2, 0, 1, 0]]}))
    assert "new" in today.recommend(user, k=41, mask=("none",))["item_id"].to_list()


def test_every_source_is_a_part_of_the_item_vectors(model):
    known = model.explainer.item_parts
    assert [name for _, name in known.names] == ["id", "image", "numbers", "graph"]
    for vectors in known.vectors:
        assert np.abs(vectors[1:20]).max() > 1e-3
    items = model.index.items
    whole = np.asarray(items.vectors)[items.valid]
    np.testing.assert_allclose(known.vectors.sum(0)[items.valid], whole, atol=ROUNDING)


def test_live_items_have_the_vectors_of_batch_scoring(engine, model, featured):
    new = columns_of(featured.items, HELD_OUT)
    bare = {"brand": "brand1"}
    assert put(engine, **{HELD_OUT: new, "bare": bare}) == ["created", "created"]
    table = pl.DataFrame(
        [{"item_id": HELD_OUT, **new}, {"item_id": "bare", **bare}], infer_schema_length=None
    )
    today = model.with_items(table)
    for item in (HELD_OUT, "bare"):
        np.testing.assert_allclose(
            live_vector(engine, item), batch_vector(today, item), atol=ROUNDING
        )
    assert "new" not in engine.index.catalog.items.columns
    assert HELD_OUT in [item.id for item in engine.recommend(["nobody"], k=39)[0].items]


def test_a_patch_of_a_feature_moves_the_item_and_another_does_not(engine, tmp_path):
    before = live_vector(engine, "i06").copy()
    put(engine, "patch", i06={"stock": 3})
    np.testing.assert_array_equal(live_vector(engine, "i06"), before)
    put(engine, "patch", i06={"image": [5, -1, 0, 2, 0, 1]})
    moved = live_vector(engine, "i06").copy()
    assert np.abs(moved - before).max() > 1e-3
    put(engine, "patch", i06={"weight": None})
    both = live_vector(engine, "i06").copy()
    assert np.abs(both - moved).max() > 1e-3
    again = LiveEngine(engine.trained, SQLiteStore(tmp_path / "store.db"))  # after a restart
    np.testing.assert_allclose(live_vector(again, "i06"), both, atol=ROUNDING)
    columns = ItemRecorder(again.catalogue, again.store.items, 100).get("i06")
    assert columns["image"] == [5, -1, 0, 2, 0, 1] and columns["stock"] == 3


@pytest.mark.parametrize("vector", [[1.0, 2.0], [], "1 2 3", [1.0, None, 0, 0, 0, 0]])
def test_a_wrong_vector_is_refused_before_it_is_stored(engine, vector):
    if vector == []:
        assert put(engine, "patch", i05={"image": vector}) == ["updated"]  # as null
        return
    with pytest.raises(DataError, match="image"):
        put(engine, "patch", i05={"image": vector})
    assert not engine.store.items.count()


def test_a_stored_vector_for_another_model_is_left_out(engine):
    before = live_vector(engine, "i06").copy()
    columns = {"image": [1.0, 2.0], "stock": 3}
    engine.store.items.save([ItemDocument("i06", columns, whole=False)])
    assert not engine.follow()
    np.testing.assert_array_equal(live_vector(engine, "i06"), before)
    assert [item.id for item in engine.recommend(["u"], where="stock = 3")[0].items] == ["i06"]


def test_vectors_that_the_run_does_not_read_are_told(engine):
    recorder = ItemRecorder(engine.catalogue, engine.store.items, 100)
    [note] = recorder.notes({"a": {"audio": [0.5, 1.5], "image": [1.0] * 6, "tags": ["a"]}})
    assert note.startswith("audio: the run does not read these vectors")


def test_a_column_that_no_expert_reads_is_told(featured):
    options = config(**{"data.numeric_columns": ["price"]})
    notes = make_context(options, prepare(options, featured)).notes
    assert "items: the vectors of image are not used; add +image to an expert of model.experts" in (
        notes
    )
    assert any("data.numeric_columns is not used" in note for note in notes)


def test_equal_vectors_are_refused(featured):
    vectors = pl.Series([[1.0, 2.0]] * len(featured.items))
    tables = replace(featured, items=featured.items.with_columns(image=vectors))
    options = config(**{"model.experts": ["id+image"]})
    with pytest.raises(DataError, match="no two different vectors"):
        make_context(options, prepare(options, tables))


def test_a_run_that_goes_on_keeps_its_maps(run, known):
    """The new data hold other vectors, which are whitened as before."""
    artifacts, options = read_artifacts(run), config(**OPTIONS)
    items = with_features(known, seed=1).items

    def context(items):
        return make_context(options, prepare(options, replace(known, items=items)), artifacts)

    assert context(items).features == artifacts.features
    lacking = items.with_columns(weight=pl.lit(None, pl.Float64))
    with pytest.raises(DataError, match="reads weight, but no item has a value there"):
        context(lacking)
    with pytest.raises(DataError, match="reads image"):
        context(items.drop("image"))
    wider = items.with_columns(pl.col("image").list.concat(pl.lit([1.0])))
    with pytest.raises(DataError, match="row 1, item 'i00': 7 numbers"):
        context(wider)
