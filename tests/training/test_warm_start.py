"""Warm starts: old rows move by id, new ones start from text and graph."""

import json
import os
import signal
from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.training import config, scalars

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.artifacts.catalog_files import NEVER
from jaxrec.config import Config
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.errors import ConfigError, DataError, Interrupted
from jaxrec.models.inputs import Sizes
from jaxrec.models.recommender import Recommender
from jaxrec.training import logging as report
from jaxrec.training import warm_start
from jaxrec.training.checkpoints import load
from jaxrec.training.context import make_context
from jaxrec.training.fit import fit
from jaxrec.training.growth import AXES, row_maps

NEW_TIME = 1_735_689_600  # 2025-01-01, after all events of `tables`


@pytest.fixture(scope="module")
def grown(tables):
    """The shop a day later: two new items, one in a new brand and with a new relation."""
    users = sorted(tables.events["user_id"].unique())[:20]
    events = pl.DataFrame(
        {
            "user_id": [user for user in users for _ in range(3)],
            "item_id": [item for user in users for item in ("a new", "i03", "i07")],
            "timestamp": [NEW_TIME + 60 * n for n in range(60)],
            "event": ["wish", "buy", "view"] * 20,
        }
    )
    old = tables.events.with_columns(pl.col("timestamp") // 1000)
    new = pl.DataFrame(
        {
            "item_id": ["a new", "unsold"],
            "title": ["Hair care number 99", "Nails"],
            "brand": ["brand1", "a new brand"],
            "categories": [["Beauty", "Hair"], ["Beauty", "Garden"]],
        }
    )
    # in another order, and without the item i29, which the events still name
    items = pl.concat([new, tables.items.reverse().filter(pl.col("item_id") != "i29")])
    triples = pl.DataFrame(
        {
            "head_type": ["item"],
            "head": ["unsold"],
            "relation": ["goes_with"],
            "tail_type": ["season"],
            "tail": ["summer"],
        }
    )
    return validate_tables(pl.concat([old.select(events.columns), events]), items, triples)


def go_on(whole_run, **options) -> Config:
    base = {"warm_start.base": str(whole_run)}
    return config(**base, **options)


def opened(config, tables):
    """The base and the context of a warm start."""
    base = warm_start.open_base(config)
    config = warm_start.with_since(config, base.artifacts)
    dataset = prepare(config, tables, warm_start.carried(config, base.artifacts))
    return base, make_context(config, dataset, base.artifacts)


def leaves(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def test_every_parameter_that_grows_with_the_data_has_axes():
    def shapes(sizes):
        config = jaxrec.configure(overrides={"model.experts": ["id+graph+text", "id"]})
        model = nnx.eval_shape(lambda: Recommender(config.model, sizes, nnx.Rngs(0)))
        flat, _ = jax.tree_util.tree_flatten_with_path(nnx.state(model))
        return {jax.tree_util.keystr(path): leaf.shape for path, leaf in flat}

    small, large = shapes(Sizes(256, 512, 2, 3, 8)), shapes(Sizes(512, 1280, 5, 7, 8))
    for name, shape in small.items():
        axes = next((axes for pattern, axes in AXES if pattern.search(name)), ())
        changed = [axis for axis, size in enumerate(shape) if large[name][axis] != size]
        assert changed == list(range(len(axes))), name


@pytest.mark.thorough
def test_old_rows_and_moments_move_by_id_and_new_ones_start_as_unknown(whole_run, tables, grown):
    base, context = opened(go_on(whole_run), grown)
    state = warm_start.start(context)
    with run_directory.open_checkpoints(whole_run, read_only=True) as manager:
        old_context = make_context(config(), prepare(config(), tables))
        old, _ = load(old_context, manager, manager.best_step())
    before, after = leaves((old.params, old.opt_state)), leaves((state.params, state.opt_state))
    maps = row_maps(base.artifacts, context)
    moved = 0
    for name, values in after.items():
        axes = next((axes for pattern, axes in AXES if pattern.search(name)), ())
        if not axes:
            if not name.endswith("[2].count"):  # of the learning rate
                np.testing.assert_array_equal(values, before[name], err_msg=name)
            continue
        if len(axes) > 1:
            continue
        rows = maps[axes[0]]
        same = np.flatnonzero(rows.same >= 0)
        np.testing.assert_array_equal(values[same], before[name][rows.same[same]], err_msg=name)
        moved += len(same)
        fresh = np.flatnonzero((rows.same < 0) & (rows.start >= 0))
        expected = before[name][rows.start[fresh]] if name.startswith("[0]") else 0
        np.testing.assert_array_equal(values[fresh], expected, err_msg=name)
    assert moved > 100
    old_ids, new_ids = base.artifacts.catalog.item_ids, context.dataset.catalog.item_ids
    place = new_ids.to_list().index("i05")
    assert maps["ids"].same[place] == old_ids.to_list().index("i05") != place


@pytest.mark.thorough
def test_a_warm_start_without_new_events_scores_as_its_base(whole_run, tables, tmp_path):
    run = tmp_path / "same"
    options = {"warm_start.since": "2100-01-01", "warm_start.epochs": 0}
    results = fit(go_on(whole_run, **options), run, tables=tables)
    assert results["selected"]["epoch"] == results["selected"]["count"] == 0
    base, same = jaxrec.load(whole_run), jaxrec.load(run)
    # the corrections are those of the base, but the counts of items have grown
    assert (same.correction, same.inverse_temperature) == (
        base.correction,
        base.inverse_temperature,
    )
    nodes = np.concatenate([t.offset + np.arange(t.count) for t in base.catalog.graph.types])
    vectors, old_vectors = (np.asarray(m.index.vectors)[nodes] for m in (same, base))
    np.testing.assert_allclose(vectors, old_vectors, atol=1e-6)
    users, expected = (m.user_batch(m.encoder.event_log(tables.events)) for m in (same, base))
    np.testing.assert_allclose(users.vectors, expected.vectors, atol=1e-5)


def test_the_paths_of_a_warm_start_are_absolute(whole_run, tables, tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxrec.training.fit.fit", lambda config, *_, **__: {"config": config})
    overrides = {"text.pretrained": "encoder"}
    results = jaxrec.fit(base=whole_run, data=tables, run="today", overrides=overrides)
    assert results["config"].text.pretrained == str(tmp_path / "encoder")


@pytest.fixture(scope="module")
def warm_run(whole_run, grown, tmp_path_factory):
    """A warm start on new events of new items, event types and relations, and its refit."""
    run = tmp_path_factory.mktemp("warm") / "today"
    data = run.parent / "data"
    data.mkdir()
    for name in ("events", "items", "triples"):
        getattr(grown, name).write_parquet(data / f"{name}.parquet")
    options = {"train.refit": "all", "warm_start.learning_rate": 0.01, "split.test_quantile": 0.5}
    jaxrec.fit(base=whole_run, data=data, run=run, overrides=options)
    return run


@pytest.mark.thorough
def test_the_grown_run_knows_what_is_new_and_keeps_what_is_gone(warm_run, grown, tables):
    model = jaxrec.load(warm_run)
    assert "wish" in model.encoder.event_type_names
    assert "goes_with" in model.catalog.graph.relations
    assert model.catalog.graph.type("season").ids.to_list() == [None, "summer"]
    gone = model.catalog.items.filter(pl.col("item_id") == "i29")
    expected = tables.items.filter(pl.col("item_id") == "i29")
    assert gone["title"].to_list() == expected["title"].to_list()
    assert gone["categories"].to_list() == expected["categories"].to_list()
    lists = model.recommend(grown.events, k=32, mask=("none",))
    assert {"a new", "unsold", "i29"} <= set(lists["item_id"])
    assert model.similar("item:unsold", k=3).height == 3
    config = run_directory.read_config(warm_run)
    assert int(config.warm_start.since) < NEW_TIME


@pytest.mark.thorough
def test_a_refit_serves_and_the_figures_stay_those_of_the_selected_model(warm_run, grown):
    results = json.loads((warm_run / "metrics.json").read_text())
    if results["selected"]["epoch"] == 0:
        pytest.fail("the warm start should learn something of its new events")
    assert results["serves"] == "refit"
    assert run_directory.served(warm_run) == warm_run / "refit"
    served, selected = (
        run_directory.read_artifacts(path) for path in (warm_run / "refit", warm_run)
    )
    assert served.trained_until == grown.events["timestamp"].max() // 1000
    assert selected.trained_until < selected.seen_until < served.trained_until
    assert served.counts.sum() > selected.counts.sum()
    identity = run_directory.identity(warm_run)
    assert identity == run_directory.identity(warm_run / "refit")
    again = jaxrec.refit(warm_run)
    assert again == results


@pytest.mark.thorough
@pytest.mark.slow
def test_a_killed_warm_start_equals_an_uninterrupted_one(
    whole_run, warm_run, tmp_path, monkeypatch
):
    write = report.RunLog.write

    def write_and_stop(self, step, row):
        write(self, step, row)
        if step == 2 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    run, config = tmp_path / "today", run_directory.read_config(warm_run)
    monkeypatch.setattr(report.RunLog, "write", write_and_stop)
    with pytest.raises(Interrupted):
        fit(config, run)
    with pytest.raises(Interrupted):  # the refit stops at its second step
        jaxrec.fit(resume=run)
    monkeypatch.undo()
    jaxrec.fit(resume=run)
    for part in ("", "refit"):
        assert scalars(run / part) == scalars(warm_run / part)
    parts, whole = (jaxrec.load(r).model.params for r in (run, warm_run))
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.hidden_size": 16}, r"model\.hidden_size is 16, but 8 in the base"),
        ({"model.experts": ["id"]}, r"model\.experts is id, but id\+graph id in the base"),
        ({"warm_start.since": "yesterday"}, r"'yesterday' is no time; give ISO 8601"),
    ],
)
def test_what_a_warm_start_cannot_carry_over_is_an_error_of_the_option(
    whole_run, tables, tmp_path, options, message
):
    with pytest.raises(ConfigError, match=message):
        fit(go_on(whole_run, **options), tmp_path / "run", tables=tables)
    assert not (tmp_path / "run").exists()


def test_positions_tell_no_new_events(whole_run, tables, tmp_path):
    with pytest.raises(DataError, match="cannot tell new events from old"):
        fit(go_on(whole_run, **{"data.time": "order"}), tmp_path / "run", tables=tables)


def test_all_events_are_new_to_a_base_that_has_seen_none(whole_run):
    base = replace(run_directory.read_artifacts(whole_run), trained_until=NEVER)
    started = warm_start.with_since(go_on(whole_run, **{"data.time": "order"}), base)
    assert started.warm_start.since == str(NEVER)
    assert warm_start.with_since(started, base) == started  # as a refit asks
    with pytest.raises(ConfigError, match="all of them are new; leave --since out"):
        warm_start.with_since(go_on(whole_run, **{"warm_start.since": "2024-01-01"}), base)


def test_gone_items_leave_when_told(whole_run, tables):
    kept = replace(
        tables,
        items=tables.items.filter(pl.col("item_id") != "i29"),
        events=tables.events.filter(pl.col("item_id") != "i29"),
    )
    counts = []
    for drop in (False, True):
        _, context = opened(go_on(whole_run, **{"warm_start.drop_items": drop}), kept)
        counts.append(context.dataset.catalog.num_items)
    assert counts == [31, 30]
