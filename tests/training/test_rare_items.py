"""Items with few training events share the id vector of the unknown item, and its row."""

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from helpers.training import config, untrained_run

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.models.items.id import id_rows, rows_of_ids
from jaxrec.training.context import make_context
from jaxrec.training.fit import fit
from jaxrec.training.growth import moved, row_maps
from jaxrec.training.sparse_rows import places_of_ids, rows_of, with_rows

OPTIONS = {"model.experts": ["id"], "model.min_events_for_id": 2, "train.epochs": 1}
NUM_RARE = 300


def with_rare(tables, times=1):
    """A shop with many more items; each is in the first events of one user, so many times."""
    users = tables.events["user_id"].unique(maintain_order=True).to_list()
    start = tables.events["timestamp"].min()
    rare = [number for number in range(NUM_RARE) for _ in range(times if number == 7 else 1)]
    events = pl.DataFrame(
        {
            "user_id": [users[number % len(users)] for number in rare],
            "item_id": [f"r{number:03}" for number in rare],
            "timestamp": [start // 1000 - 1000 + place for place in range(len(rare))],
            "event": "view",
        }
    )
    names = [f"r{number:03}" for number in range(NUM_RARE)]
    items = pl.DataFrame({"item_id": names, "brand": "brand1", "title": "a rare care"})
    old = tables.events.with_columns(pl.col("timestamp") // 1000)
    both = pl.concat([events, old.select(events.columns)])
    return validate_tables(both, pl.concat([tables.items, items], how="diagonal"), None)


@pytest.fixture(scope="module")
def shop(tables):
    return with_rare(tables)


@pytest.fixture(scope="module")
def model(shop, tmp_path_factory):
    run = untrained_run(tmp_path_factory.mktemp("rare") / "run", shop, **OPTIONS)
    return jaxrec.load(run)


def rows_by_id(model):
    ids = model.catalog.item_ids
    return {ids[row]: row for row in range(1, len(ids))}


def test_rows_of_ids():
    has_id = np.array([False, True, False, True, True])
    assert id_rows(has_id, 0).tolist() == [0, 1, 0, 3, 4]
    assert id_rows(has_id, rows_of_ids(has_id)).tolist() == [0, 1, 0, 2, 3]
    assert rows_of_ids(np.arange(600) % 3 == 1) == 256


def test_the_table_has_rows_for_frequent_items_alone(model):
    table = model.model.params["experts"][0]["item_encoder"]["sources"][0]["item_table"]
    assert len(table) == 256 and model.artifacts.sizes.num_items == 512
    numbers = rows_by_id(model)
    vectors = np.asarray(model.index.items.vectors)
    rare = vectors[[row for name, row in numbers.items() if name.startswith("r")]]
    np.testing.assert_array_equal(rare, np.broadcast_to(rare[0], rare.shape))
    frequent = vectors[[row for name, row in numbers.items() if name.startswith("i")]]
    assert len(np.unique(frequent, axis=0)) == len(frequent) == 30
    assert not (frequent == rare[0]).all(1).any()


def test_rare_items_are_predicted_and_listed(model, shop):
    context = make_context(config(**OPTIONS), prepare(config(**OPTIONS), shop))
    assert np.asarray(context.arrays.candidates).sum() == 30 + NUM_RARE
    lists = model.recommend(shop.events, k=330, mask=("none",))
    assert lists["item_id"].n_unique() == 30 + NUM_RARE


def test_new_items_leave_the_others_as_they_are(model):
    grown = model.with_items(pl.DataFrame({"item_id": ["new"], "brand": ["brand1"]}))
    before, after = (np.asarray(own.index.items.vectors) for own in (model, grown))
    count = model.catalog.num_items
    np.testing.assert_allclose(after[:count], before[:count], atol=1e-6)
    np.testing.assert_allclose(after[count], before[rows_by_id(model)["r000"]], atol=1e-6)


def test_rows_move_by_id_when_a_rare_item_becomes_frequent(model, tables):
    options = config(**OPTIONS)
    context = make_context(options, prepare(options, with_rare(tables, times=2)))
    rows = row_maps(model.artifacts, context)
    old, new = jnp.arange(256.0)[:, None], jnp.full((256, 1), -1.0)
    values = np.asarray(moved("['item_table']", new, old, rows, starts=True))[:, 0]
    before = dict(zip(model.catalog.item_ids, model.artifacts.id_rows, strict=True))
    after = dict(zip(context.dataset.catalog.item_ids, context.id_rows, strict=True))
    assert before["r007"] == 0 < after["r007"]
    for name, row in after.items():
        assert values[row] == before[name]


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_is_trained_served_and_goes_on(shop, tables, tmp_path, sparse):
    sampled = {"train.loss": "sampled_softmax", "train.negatives": 8, "train.sparse_rows": True}
    options = OPTIONS | (sampled if sparse else {})
    results = fit(config(**options), tmp_path / "run", tables=shop)
    assert results["test"]["model"]["count"] == 40
    run = jaxrec.load(tmp_path / "run")
    assert len(run.recommend(shop.events, k=5)) == 200
    before = untrained_run(tmp_path / "before", shop, **options)
    tables_of = (
        np.asarray(own.model.params["experts"][0]["item_encoder"]["sources"][0]["item_table"])
        for own in (run, jaxrec.load(before))
    )
    trained, initial = tables_of
    moved_rows = (trained != initial).any(1)
    assert moved_rows[:31].all() and (sparse is not moved_rows[31:].all())
    later = with_rare(tables, times=3)
    go_on = {"warm_start.base": str(tmp_path / "run"), "warm_start.since": "2024-02-01"}
    fit(config(**options, **go_on), tmp_path / "next", tables=later)
    after = jaxrec.load(tmp_path / "next")
    assert after.artifacts.has_trained_id.sum() == 31
    assert len(after.recommend(later.events, k=5)) == 200


def test_a_sparse_step_writes_the_unknown_row_once():
    """Though many of the items that it reads share it."""
    tree = {"item_table": jnp.arange(8.0).reshape(4, 2)}
    ids = jnp.array([0, 2, 0, 1, 0])
    part = rows_of(tree, ids)
    assert places_of_ids(ids).tolist() == [0, 1, 0, 3, 0]
    changed = jax.tree.map(lambda rows: rows + 10 * (1 + jnp.arange(5.0))[:, None], part)
    new = with_rows(tree, ids, changed)["item_table"]
    np.testing.assert_array_equal(new, [[10, 11], [42, 43], [24, 25], [6, 7]])
