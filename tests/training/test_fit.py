"""Training end to end on small tables."""

import json
from dataclasses import replace

import polars as pl
import pytest
from helpers.training import config, scalars

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.errors import DataError, InputError, RunError
from jaxrec.training.fit import fit


def test_a_run_writes_all_its_files(whole_run):
    run = whole_run
    results = json.loads((run / "metrics.json").read_text())
    assert run_directory.read_config(run) == config()
    assert not [p for p in run.rglob("*") if p.suffix in (".pkl", ".pickle")]
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        history = run_directory.restore_progress(manager, manager.latest_step()).history
        assert len(manager.all_steps()) <= 2
        selected = results["selected"]
        assert selected["ndcg@10"] == max(row["ndcg@10"] for row in history)
        assert selected == {"epoch": selected["epoch"], **history[selected["epoch"] - 1]}
        steps_per_epoch = manager.latest_step() // len(history)
        assert manager.best_step() == steps_per_epoch * selected["epoch"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(tables, whole_run, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        fit(config(**{"train.seed": seed}), tmp_path / name, tables=tables)
    assert scalars(tmp_path / "same") == scalars(whole_run)
    assert scalars(tmp_path / "other") != scalars(whole_run)


def test_an_existing_directory_is_not_touched(tables, tmp_path):
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(RunError, match="--resume"):
        fit(config(), tmp_path, tables=tables)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_bad_data_create_no_run(tables, tmp_path):
    with pytest.raises(ValueError, match="left"):
        fit(config(**{"data.min_item_events": 10**6}), tmp_path / "run", tables=tables)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_resume_with_other_data(tables, whole_run):
    """Other data: an item with another id, or more events of the same items."""
    named = pl.col("item_id").replace(tables.items["item_id"][0], "newly named")
    renamed = replace(
        tables,
        items=tables.items.with_columns(named),
        events=tables.events.with_columns(named),
        triples=None,
    )
    log_before = (whole_run / "log.jsonl").read_text()
    with pytest.raises(RunError, match=r"trained on other data \(they differ in nodes"):
        jaxrec.fit(data=renamed, resume=whole_run)
    grown = replace(tables, events=pl.concat([tables.events[:1], tables.events]))
    with pytest.raises(RunError, match=r"differ in training events\)"):
        jaxrec.fit(data=grown, resume=whole_run)
    assert (whole_run / "log.jsonl").read_text() == log_before


def test_a_trained_run_recommends_to_new_users(tables, whole_run):
    model = jaxrec.load(whole_run)
    events = tables.events.filter(pl.col("user_id") == tables.events["user_id"][0])
    new_user = events.with_columns(user_id=pl.lit("new"))
    both = model.recommend(pl.concat([events, new_user]), k=5)
    lists = both.partition_by("user_id", maintain_order=True)
    assert [len(rows) for rows in lists] == [5, 5]
    assert lists[0]["item_id"].to_list() == lists[1]["item_id"].to_list()
    assert not set(both["item_id"]) & set(events["item_id"])


@pytest.mark.slow
def test_finetuning_without_any_text_trains_and_loads(tables, tmp_path):
    options = {"model.experts": ["id"], "text.mode": "finetune", "train.epochs": 1}
    fit(config(**options), tmp_path / "run", tables=tables)
    assert len(jaxrec.load(tmp_path / "run").recommend(tables.events, k=1)) == 40


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("experts", "usable"),
    [
        pytest.param(["id+graph+text"], ("id+graph+text",), marks=pytest.mark.slow),
        (["text+graph", "id"], ("id",)),
    ],
)
def test_events_alone_are_enough(tables, tmp_path, capsys, experts, usable):
    bare = validate_tables(tables.events.drop("event"), None, None)
    results = fit(config(**{"model.experts": experts}), tmp_path / "run", tables=bare)
    assert results["test"]["model"]["count"] > 0
    model = jaxrec.load(tmp_path / "run")
    assert model.config.model.experts == usable
    noted = "the data have no source for the expert text+graph" in capsys.readouterr().err
    assert noted == (len(usable) < len(experts))
    # the only event type of the data, as in evaluation
    assert model.encoder.target_event_type == prepare(model.config, bare).target_event_type == 0
    assert len(model.recommend(bare.events, k=2)) == 2 * bare.events["user_id"].n_unique()


@pytest.mark.thorough
def test_a_catalogue_of_one_item_is_trained_and_served(tmp_path):
    users = [f"u{number}" for number in range(12) for _ in range(4)]
    events = pl.DataFrame({"user_id": users, "item_id": "only", "timestamp": range(len(users))})
    options = {"model.experts": ["id"], "train.epochs": 1, "data.time": "order"}
    run, data = tmp_path / "run", validate_tables(events, None, None, time="order")
    results = fit(config(**options), run, tables=data)
    assert json.loads((run / "metrics.json").read_text()) == results
    model = jaxrec.load(run)
    assert model.recommend(events).is_empty()
    assert len(model.recommend(events, mask=("none",))) == 12
    with pytest.raises(InputError, match="there are no other items"):
        model.similar("item:only")


def test_no_expert_with_a_source_is_an_error(tables, tmp_path):
    bare = validate_tables(tables.events, None, None)
    with pytest.raises(DataError, match="no source for the experts text; give items a text"):
        fit(config(**{"model.experts": ["text"]}), tmp_path / "run", tables=bare)
    assert not (tmp_path / "run").exists()
