"""Training end to end on small tables: determinism, resumption, meshes, compilations."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
from flax import nnx
from helpers.paths import GOLDEN, ROOT

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress
from jaxrec.config import parse
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import validate_tables
from jaxrec.errors import DataError, RunError
from jaxrec.evaluation import metrics
from jaxrec.training import logging as report
from jaxrec.training import loop as training
from jaxrec.training import state as train_state
from jaxrec.training.state import initial_state, make_context

TINY = {
    "split.scheme": "leave_one_out",
    "model.experts": ["id+graph", "id"],
    "model.hidden_size": 8,
    "model.num_layers": 1,
    "train.batch_size": 4,
    "train.sequence_length": 16,
    "train.epochs": 3,
    "train.patience": 9,
    "train.warmup_steps": 2,
}


def config(**options):
    return parse(layers=[TINY, options])


def scalars(run):
    """Logged scalars without the speed."""
    return [
        {k: v for k, v in row.items() if k != "events_per_second"} for row in report.read_log(run)
    ]


def first_steps(context, count=3):
    """Losses of the first steps from the initial state."""
    step = training.make_train_step(context)
    state = initial_state(context)
    losses = []
    for batch, _ in training.prefetch(context, 0, range(count)):
        state, metrics = step(state, context.arrays, batch)
        losses.append(float(metrics["loss"]))
    return losses, step


@pytest.fixture(scope="module")
def whole_run(tables, tmp_path_factory):
    """A complete run; no test changes it."""
    run = tmp_path_factory.mktemp("training") / "whole"
    results = training.fit(config(), run, tables=tables)
    assert json.loads((run / "metrics.json").read_text()) == results
    return run


def test_a_run_writes_all_its_files(tables, whole_run):
    run = whole_run
    results = json.loads((run / "metrics.json").read_text())
    assert results["protocol"]["candidates"] == len(tables.items)
    ranks = pl.read_parquet(run / "ranks.parquet").filter(pl.col("queries") == "test")["rank"]
    assert metrics.summarise(ranks.to_numpy()).items() <= results["test"]["model"].items()
    baselines = {"popularity", "recent_popularity", "personal_frequency", "item_knn"}
    assert set(results["test"]) == {"model", "segments"} | baselines
    assert (run / "training.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events*"))
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


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tables, whole_run, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        training.fit(config(**{"train.seed": seed}), tmp_path / name, tables=tables)
    assert scalars(tmp_path / "same") == scalars(whole_run)
    assert scalars(tmp_path / "other") != scalars(whole_run)


def test_an_existing_directory_is_not_touched(tables, tmp_path):
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(RunError, match="--resume"):
        training.fit(config(), tmp_path, tables=tables)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_bad_data_create_no_run(tables, tmp_path):
    with pytest.raises(ValueError, match="left"):
        training.fit(config(**{"data.min_item_events": 10**6}), tmp_path / "run", tables=tables)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stop_after", [1, 4, "an epoch", "the last epoch"])
def test_stopped_and_resumed_equals_uninterrupted(
    tables, whole_run, tmp_path, monkeypatch, stop_after
):
    write = report.RunLog.write
    if isinstance(stop_after, str):
        ends = [row["step"] for row in scalars(whole_run) if "validation/ndcg@10" in row]
        stop_after = ends[0 if stop_after == "an epoch" else -1]

    def stop_then_write(self, step, row):
        write(self, step, row)
        if step == stop_after and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report.RunLog, "write", stop_then_write)
    with pytest.raises(training.Interrupted) as stop:
        training.fit(config(), tmp_path / "parts", tables=tables)
    assert stop.value.code == 143
    monkeypatch.undo()
    jaxrec.fit(data=tables, resume=tmp_path / "parts")
    runs = whole_run, tmp_path / "parts"
    whole, parts = map(scalars, runs)
    assert parts == whole
    whole, parts = (jaxrec.load(run).params for run in runs)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    whole, parts = ((run / "metrics.json").read_text() for run in runs)
    assert parts == whole


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


def test_kill_9_leaves_a_run_that_resumes(tables, whole_run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("events", "items", "triples"):
        frame = getattr(tables, name)
        if frame is not None:
            frame.write_parquet(data / f"{name}.parquet")
    program = (
        "import os, signal, sys, jaxrec.training.loop as t, jaxrec.training.logging as r\n"
        "from jaxrec.config import parse\nfrom pathlib import Path\n"
        "write = r.RunLog.write\n"
        "def kill(self, step, row):\n"
        "    write(self, step, row)\n"
        "    if step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "r.RunLog.write = kill\n"
        "import json\n"
        "t.fit(parse(layers=[json.loads(sys.argv[1])]), Path(sys.argv[2]))\n"
    )
    options = json.dumps(TINY | {"data.source": str(data)})
    arguments = [sys.executable, "-c", program, options, str(tmp_path / "killed")]
    killed = subprocess.run(arguments, capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    jaxrec.fit(resume=tmp_path / "killed")
    assert scalars(tmp_path / "killed") == scalars(whole_run)


def test_one_device_and_four_see_the_same_losses(tables, monkeypatch):
    assert jax.device_count() == 4
    dataset = prepare(config(), tables)
    on_four, _ = first_steps(make_context(config(), dataset))
    split_items, _ = first_steps(make_context(config(**{"train.item_shards": 2}), dataset))
    one = jax.make_mesh(
        (1, 1),
        ("users", "items"),
        devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    monkeypatch.setattr(train_state, "make_mesh", lambda shards: one)
    on_one, _ = first_steps(make_context(config(), dataset))
    np.testing.assert_allclose(on_four, on_one, rtol=1e-5)
    np.testing.assert_allclose(split_items, on_one, rtol=1e-5)


def test_a_checkpoint_restores_on_another_mesh(tables, whole_run):
    context = make_context(config(**{"train.item_shards": 4}), prepare(config(), tables))
    with run_directory.open_checkpoints(whole_run, read_only=True) as manager:
        state, progress = training.load(context, manager, manager.best_step())
    assert isinstance(progress, Progress)
    trained = jaxrec.load(whole_run).params
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(state.params), trained)


def test_the_step_is_compiled_once(tables):
    _, step = first_steps(make_context(config(), prepare(config(), tables)))
    assert step._cache_size() == 1


def test_training_overfits_one_batch(tables):
    options = {"model.dropout": 0.0, "model.id_dropout": 0.0, "train.learning_rate": 0.02}
    context = make_context(config(**options), prepare(config(), tables))
    state = initial_state(context)
    step = training.make_train_step(context)
    batch, _ = next(training.prefetch(context, 0, range(1)))
    losses = []
    for _ in range(60):
        state, metrics = step(state, context.arrays, batch)
        losses.append(float(metrics["next_item/0"]))
    assert losses[-1] < 0.3 * losses[0]


def test_bf16_trains_close_to_float32(tables):
    dataset = prepare(config(), tables)
    options = {"model.num_layers": 2}
    full, _ = first_steps(make_context(config(**options), dataset))
    half, _ = first_steps(make_context(config(**options, **{"train.bf16": True}), dataset))
    np.testing.assert_allclose(half, full, rtol=0.02)


def test_divergence_is_an_error(tables, tmp_path):
    broken = replace(config(), train=replace(config().train, learning_rate=1e30, clip=1e30))
    with jax.debug_nans(False), pytest.raises(training.Diverged, match="learning_rate"):
        training.fit(broken, tmp_path / "run", tables=tables)


def test_a_trained_run_recommends_to_users_it_has_never_seen(tables, whole_run):
    model = jaxrec.load(whole_run)
    events = tables.events.filter(pl.col("user_id") == tables.events["user_id"][0])
    stranger = events.with_columns(user_id=pl.lit("stranger"))
    both = model.recommend(pl.concat([events, stranger]), k=5)
    lists = both.partition_by("user_id", maintain_order=True)
    assert [len(rows) for rows in lists] == [5, 5]
    assert lists[0]["item_id"].to_list() == lists[1]["item_id"].to_list()
    assert not set(both["item_id"]) & set(events["item_id"])


def test_finetuning_without_any_text_trains_and_loads(tables, tmp_path):
    options = {"model.experts": ["id"], "text.mode": "finetune", "train.epochs": 1}
    training.fit(config(**options), tmp_path / "run", tables=tables)
    assert len(jaxrec.load(tmp_path / "run").recommend(tables.events, k=1)) == 40


def test_finetuning_changes_the_text_layers_and_refreshes_the_vectors(tables, tmp_path):
    encoder = GOLDEN / "tiny_bert"
    options = {
        "model.experts": ["text"],
        "text.mode": "finetune",
        "text.pretrained": str(encoder),
        "text.finetune_items": 8,
    }
    context = make_context(config(**options), prepare(config(**options), tables))
    state = training.refresh_text(context, initial_state(context))
    tower = jax.tree.map(np.array, state.params["text_tower"])
    text = np.array(state.text)
    step = training.make_train_step(context)
    for batch, _ in training.prefetch(context, 0, range(3)):
        state, _ = step(state, context.arrays, batch)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), tower, state.params["text_tower"])
    assert any(jax.tree.leaves(changed))
    refreshed = training.refresh_text(context, state)
    assert refreshed.text.shape == text.shape
    assert not np.array_equal(refreshed.text[1:5], text[1:5])
    training.fit(config(**options), tmp_path / "run", tables=tables)
    assert len(jaxrec.load(tmp_path / "run").recommend(tables.events, k=3))


@pytest.mark.parametrize(
    ("experts", "usable"),
    [(["id+graph+text"], ("id+graph+text",)), (["text+graph", "id"], ("id",))],
)
def test_events_alone_are_enough(tables, tmp_path, capsys, experts, usable):
    bare = validate_tables(tables.events.drop("event"), None, None)
    results = training.fit(config(**{"model.experts": experts}), tmp_path / "run", tables=bare)
    assert results["test"]["model"]["count"] > 0
    model = jaxrec.load(tmp_path / "run")
    assert model.config.model.experts == usable
    noted = "the data have no source for the expert text+graph" in capsys.readouterr().out
    assert noted == (len(usable) < len(experts))
    # the only event type of the data, as in evaluation
    assert model.encoder.target_event_type == prepare(model.config, bare).target_event_type == 0
    assert len(model.recommend(bare.events, k=2)) == 2 * bare.events["user_id"].n_unique()


def test_no_expert_with_a_source_is_an_error(tables, tmp_path):
    bare = validate_tables(tables.events, None, None)
    with pytest.raises(DataError, match="no source for the experts text; give items a text"):
        training.fit(config(**{"model.experts": ["text"]}), tmp_path / "run", tables=bare)
    assert not (tmp_path / "run").exists()
