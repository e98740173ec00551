"""A trained model for the catalogue of another shop."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from helpers.histories import new_user_of_brand
from helpers.live import DAY, assert_as_in_batch, change, event, table
from helpers.shop import random_neighbours

import jaxrec
from jaxrec.cli import transfer
from jaxrec.data.tables import validate_tables
from jaxrec.errors import DataError, InputError, RunError
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.inference.loading import read_calibration
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.item_recorder import ItemRecorder
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.training import cards
from jaxrec.training.card_parts import corrections
from jaxrec.training.logging import read_log


@pytest.fixture(scope="module")
def other_items(known_shop):
    """The same goods in another order, under ids that mean other items in training."""
    goods = known_shop.items.sort("item_id", descending=True)
    return goods.with_columns(item_id=known_shop.items.sort("item_id")["item_id"])


@pytest.fixture(scope="module")
def other(model, other_items):
    return model.for_shop(other_items)


def same_goods(other_items, known_shop):
    """The id in the other shop of every item of training."""
    first, last = known_shop.items.sort("item_id")["item_id"], other_items["item_id"]
    return dict(zip(first.reverse().to_list(), last.to_list(), strict=True))


def test_items_are_those_of_new_items(model, other, other_items, known_shop):
    new = known_shop.items.with_columns(item_id="new" + pl.col("item_id"))
    today = model.with_items(new)
    rows = {i: n for n, i in enumerate(today.catalog.item_ids)}
    other_rows = {i: n for n, i in enumerate(other.catalog.item_ids)}
    pairs = [
        (rows[f"new{i}"], other_rows[j]) for i, j in same_goods(other_items, known_shop).items()
    ]
    ours, others = (list(side) for side in zip(*pairs, strict=True))
    np.testing.assert_allclose(
        other.index.host_vectors("item")[others], today.index.host_vectors("item")[ours], atol=5e-3
    )


def test_users_get_items_of_their_brand(other, other_items, known_shop):
    of = same_goods(other_items, known_shop)
    events = new_user_of_brand(3).with_columns(pl.col("item_id").replace_strict(of))
    best = other.recommend(events, k=3)["item_id"].to_list()
    brands = other_items.filter(pl.col("item_id").is_in(best))["brand"].unique().to_list()
    assert brands == ["brand3"]
    assert other.similar(f"item:{events['item_id'][0]}", k=1)["item_id"][0] in of.values()


def test_nothing_of_the_first_shop_is_ranked(model, other_items):
    few = model.for_shop(other_items.head(3).with_columns(brand=pl.lit("new")))
    table = few.recommend(new_user_of_brand(0), k=3, mask=("none",))
    assert set(table["item_id"]) == set(other_items["item_id"].head(3))
    assert few.recommend(new_user_of_brand(0), target="brand")["brand"].to_list() == ["new"]
    assert "0 of 3 brands, categories" in few.notes[-1] or "known from training" in few.notes[-1]


@pytest.fixture(scope="module")
def other_run(trained_run, other_items, tmp_path_factory):
    """A run for the other shop, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("other")
    items, out = folder / "items.parquet", folder / "out"
    other_items.write_parquet(items)
    arguments = [str(trained_run), "--items", str(items), "--out", str(out)]
    transfer.run(arguments)
    return out, arguments


def test_a_run_for_another_shop_is_a_run(trained_run, other, other_items, other_run):
    out, arguments = other_run
    events = new_user_of_brand(2)
    loaded = jaxrec.load(out).recommend(events, k=5)
    assert loaded["item_id"].equals(other.recommend(events, k=5)["item_id"])
    with pytest.raises(RunError, match="exists; name another --out"):
        transfer.run(arguments)
    for go_on in (jaxrec.refit, jaxrec.add_forecast):
        with pytest.raises(RunError, match="begin with jaxrec train --from"):
            go_on(out)
    with pytest.raises(RunError, match="begin with jaxrec train --from"):
        jaxrec.fit(resume=out)
    card, data = ((out / name).read_text() for name in (cards.MODEL_CARD, cards.DATA_CARD))
    fitted = corrections(*read_calibration(out))
    assert f"| corrections | as in `{trained_run.name}`: {fitted} |" in card
    assert "no event of this shop is known" in card and "only their graph, text:" in card
    assert "Source: `items.parquet`" in data and f"| items | {len(other_items)} |" in data
    assert "| brand | String | 0.0% |" in data and "| brand | 4 |" in data
    assert "| events | none |" in data and "ranks.parquet" not in data


@pytest.mark.thorough
def test_a_run_for_another_shop_serves_live(other_run, other_items, tmp_path):
    """Events and a new item give the lists of batch scoring."""
    model = jaxrec.load(other_run[0])
    engine = LiveEngine(model, SQLiteStore(tmp_path / "store.db"))
    assert not engine.shop_items.has_popular
    ids = other_items.filter(brand="brand3")["item_id"].to_list()
    user_events = [UserEvent("u", event(n * DAY, item)) for n, item in enumerate(ids[:3])]
    assert engine.record(user_events) == ["accepted"] * 3
    assert_as_in_batch(engine, user_events)
    new = {"title": "brand z item k", "brand": "brand3", "categories": ["Beauty", "Shelf 1"]}
    recorder = ItemRecorder(engine.catalogue, engine.store.items, 100)
    assert change(recorder, "put", {"new": new}) == ["created"]
    engine.follow()
    batch = model.with_items(pl.DataFrame([{"item_id": "new", **new}]))
    lists = batch.recommend(table(user_events), k=len(other_items) - 3)
    live = [item.id for item in engine.recommend(["u"], k=len(other_items) - 3)[0].items]
    assert live == lists["item_id"].to_list() and "new" in live[:10]


def test_similar_texts_of_the_other_shop_are_neighbours(model, other_items):
    fit = NeighbourFit(half_life=3.0, strength=2.0)
    correction = model.correction.with_neighbours({"similar_text": fit})
    raised = replace(model, correction=correction, neighbours=random_neighbours(model))
    [(name, neighbours)] = raised.for_shop(other_items.head(9)).neighbours.items()
    assert name == "similar_text" and neighbours.half_life == 3
    assert neighbours.items.max() <= 9 and (neighbours.items[1:10, 0] > 0).all()
    assert neighbours.amounts[1:10, 0].mean() == pytest.approx(2, abs=1e-4)
    assert not replace(raised, neighbours={}).for_shop(other_items).neighbours


def test_bad_tables_and_models_are_refused(model, other_items):
    with pytest.raises(DataError, match="has no rows"):
        model.for_shop(other_items.clear())
    with pytest.raises(DataError, match="item_id"):
        model.for_shop(other_items.drop("item_id"))
    config = replace(model.config, model=replace(model.config.model, experts=("id",)))
    with pytest.raises(InputError, match="ids alone"):
        replace(model, config=config).for_shop(other_items)


def test_what_items_of_the_other_shop_lack_is_told(model, other, other_items):
    assert not any("have a text" in note for note in other.notes)
    bare = other_items.select("item_id", Name="title").with_columns(brand=None)
    notes = "\n".join(model.for_shop(bare).notes)
    assert "no title, but Name. If that is the same, rename the column to title" in notes
    assert f"0 of {len(bare)} items have a text; the model reads title" in notes
    assert "items: no categories, which texts held in training" in notes
    assert "none with an edge to any category or brand" in notes and "known from" not in notes
    titles = pl.when(pl.col("item_id") < "i12").then("title")
    some = other_items.select("item_id", title=titles)
    notes = model.for_shop(some).notes
    assert any(note.startswith(f"12 of {len(some)} items have a text") for note in notes)


def test_triples_of_the_other_shop_are_its_edges(model, other_items):
    first, *rest = other_items["item_id"]
    edge = {"head_type": "item", "relation": "has_brand", "tail_type": "brand", "head": first}
    triples = pl.DataFrame([edge | {"tail": "brand3"}, edge | {"relation": "made_by", "tail": "x"}])
    bare = other_items.drop("brand", "categories")
    linked = model.for_shop(bare, triples)
    assert "1 of 1 brands" in linked.notes[-1]
    assert any("made_by" in note for note in linked.notes)
    vectors = [shop.index.host_vectors("item") for shop in (model.for_shop(bare), linked)]
    rows = [linked.catalog.item_ids.to_list().index(item) for item in (first, rest[0])]
    moved, same = np.abs(vectors[1] - vectors[0])[rows].max(1)
    assert moved > 1e-3 > same
    best = linked.recommend(new_user_of_brand(0), target="brand")["brand"].to_list()
    assert best == ["brand3"]


@pytest.mark.slow
def test_training_goes_on_in_the_other_shop(trained_run, other_items, known_shop, tmp_path, capsys):
    items, out = tmp_path / "items.parquet", tmp_path / "out"
    other_items.write_parquet(items)
    transfer.run([str(trained_run), "--items", str(items), "--out", str(out)])
    of = same_goods(other_items, known_shop)
    events = known_shop.events.with_columns(pl.col("item_id").replace_strict(of))
    shop = validate_tables(events, other_items, None)
    results = jaxrec.fit(
        data=shop,
        base=out,
        run=tmp_path / "run",
        overrides={"train.epochs": 1, "train.refit": "none"},
    )
    assert results["test"]["model"]["recall@10"] > 0.5
    assert "train.epochs and train.learning_rate hold here" in capsys.readouterr().err
    epochs = [entry for entry in read_log(tmp_path / "run") if "validation/ndcg@10" in entry]
    assert len(epochs) == 1
