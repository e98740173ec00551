"""A private training from data to results."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import polars as pl
import pytest
from helpers.training import config, scalars

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.config import ForecastConfig
from jaxrec.data.tables import validate_tables
from jaxrec.errors import ConfigError, DataError, Interrupted, RunError
from jaxrec.training import logging as report
from jaxrec.training.add_forecast import add_forecast
from jaxrec.training.fit import fit
from jaxrec.training.privacy import run as private
from jaxrec.training.privacy.budget import Budget, spent
from jaxrec.training.refit import refit

OPTIONS = {
    "model.experts": ["id"],
    "train.batch_size": 16,
    "train.epochs": 2,
    "train.privacy.epsilon": 4.0,
}
KEY = b"5" * 64


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory):
    """A finished private run with a key that is known."""
    run = tmp_path_factory.mktemp("private") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(private, "new_key", lambda: KEY)
        fit(config(**OPTIONS), run, tables=tables)
    return run


@pytest.mark.thorough
def test_the_results_tell_what_was_spent(run):
    results = json.loads((run / "metrics.json").read_text())
    told, plan = results["privacy"], Budget(**json.loads((run / "privacy.json").read_text()))
    assert told["steps"] == plan.steps == 6
    assert told["epsilon"] == spent(plan, 6)
    assert 0.98 * 4 < told["epsilon"] <= told["budget"] == 4
    assert told["users"] == 40
    rows = [row["epsilon"] for row in report.read_log(run) if "epsilon" in row]
    assert rows == [spent(plan, steps) for steps in (3, 6)]
    assert results["selected"]["epoch"] == 2
    assert results["selected"]["ndcg@10"] == results["validation"]["ndcg@10"]
    assert f"epsilon {told['epsilon']:.3g}, delta 1e-05" in (run / "model_card.md").read_text()


@pytest.mark.thorough
def test_what_is_served_holds_nothing_of_the_events_but_weights(run, tables):
    artifacts = run_directory.read_artifacts(run)
    assert not artifacts.counts.any()
    assert artifacts.has_trained_id[1:].all()
    assert artifacts.trained_until is artifacts.seen_until is None
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        assert manager.best_step() == manager.latest_step() == 6
        history = run_directory.restore_progress(manager, 6).history
    assert history == (private.UNSELECTED, private.UNSELECTED)
    calibration = json.loads((run / "calibration.json").read_text())
    assert calibration["inverse_temperature"] == 1
    assert set(calibration["correction"].values()) == {0, None}
    model = jaxrec.load(run)
    assert not model.neighbours
    assert len(model.recommend(tables.events, k=3)) == 3 * 40


@pytest.mark.thorough
def test_the_key_is_kept_while_training_only(run, tables, tmp_path, stopped):
    assert not (run / "privacy.key").exists()
    assert (stopped / "privacy.key").stat().st_mode & 0o777 == 0o600
    assert (stopped / "privacy.key").read_bytes() == KEY


@pytest.fixture(scope="module")
def stopped(tables, tmp_path_factory):
    """A private run that was stopped after four of six steps."""
    run = tmp_path_factory.mktemp("private") / "stopped"
    write = report.RunLog.write

    def stop_then_write(self, step, row):
        write(self, step, row)
        if step == 3 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(private, "new_key", lambda: KEY)
        patched.setattr(report.RunLog, "write", stop_then_write)
        with pytest.raises(Interrupted):
            fit(config(**OPTIONS), run, tables=tables)
    return run


@pytest.mark.thorough
def test_a_resumed_run_spends_and_learns_as_one_that_was_never_stopped(
    run, stopped, tables, tmp_path
):
    resumed = tmp_path / "resumed"
    shutil.copytree(stopped, resumed)
    jaxrec.fit(data=tables, resume=resumed)
    assert scalars(resumed) == scalars(run)
    assert (resumed / "metrics.json").read_text() == (run / "metrics.json").read_text()
    params = [jaxrec.load(directory).model.params for directory in (run, resumed)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert not (resumed / "privacy.key").exists()


@pytest.mark.thorough
def test_a_stopped_run_keeps_its_plan(stopped, tables, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(stopped, changed)
    path = changed / "config.yaml"
    options = path.read_text()
    path.write_text(options.replace("epochs: 2", "epochs: 3"))
    with pytest.raises(RunError, match=r"differ from those in privacy\.json"):
        jaxrec.fit(data=tables, resume=changed)
    path.write_text(options)
    (changed / "privacy.key").unlink()
    with pytest.raises(RunError, match="the key of this private run is gone"):
        jaxrec.fit(data=tables, resume=changed)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("data.min_item_events", 5),
        ("data.min_user_events", 5),
        ("data.drop_repeats", True),
        ("split.scheme", "global_time"),
        ("train.loss", "sampled_softmax"),
        ("text.mode", "finetune"),
        ("train.init", "runs/other"),
        ("warm_start.base", "runs/other"),
        ("train.refit", "all"),
        ("forecast.steps", 5),
    ],
)
def test_options_that_break_the_guarantee_are_refused(option, value):
    with pytest.raises(ConfigError, match=rf"train\.privacy does not go with {option}.*, which "):
        config(**OPTIONS, **{option: value})


def test_several_shops_are_refused():
    options = {"model.experts": ["text"], "data.shops": {"a": "a", "b": "b"}}
    with pytest.raises(ConfigError, match=r"does not go with data\.shops"):
        config(**options, **{"train.privacy.epsilon": 1.0})


def test_the_list_of_items_must_not_come_from_the_events(tables, tmp_path):
    bare = validate_tables(tables.events, None, None)
    with pytest.raises(DataError, match="but there is no items table"):
        fit(config(**OPTIONS), tmp_path / "run", tables=bare)
    short = validate_tables(tables.events, tables.items[1:], None)
    with pytest.raises(DataError, match="events are of items that the items table lacks"):
        fit(config(**OPTIONS), tmp_path / "run", tables=short)
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_the_users_are_not_trained_on_a_second_time(run, tables):
    options = run_directory.read_config(run)
    with pytest.raises(ConfigError, match="so there is no refit"):
        refit(options, run, tables=tables)
    with pytest.raises(ConfigError, match=r"forecast\.steps, which trains a decoder without noise"):
        add_forecast(run, ForecastConfig(4), tables=tables)
    with pytest.raises(ConfigError, match=r"warm_start\.base"):
        jaxrec.fit(data=tables, run=run.parent / "next", base=run)


@pytest.mark.slow
def test_a_private_run_with_a_large_budget_learns(shop, tmp_path):
    """The users of a brand get items of that brand, which chance gives in a quarter of cases."""
    options = {
        "model.experts": ["id+graph"],
        "model.dropout": 0.0,
        "train.batch_size": 120,
        "train.epochs": 40,
        "train.learning_rate": 0.03,
        "train.privacy.epsilon": 50.0,
    }
    results = fit(config(**options), tmp_path / "run", tables=shop)
    assert results["privacy"]["epsilon"] <= 50
    lists = jaxrec.load(tmp_path / "run").recommend(shop.events, k=3)
    users = pl.col("user_id").str.slice(1).cast(pl.Int64) % 4
    brands = pl.col("item_id").str.slice(1).cast(pl.Int64) // 10
    assert lists.select((users == brands).mean()).item() > 0.6
