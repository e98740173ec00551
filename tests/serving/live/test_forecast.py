"""Forecasts of live users."""

import jax
import numpy as np
import polars as pl
import pytest
from helpers.live import DAY, event, table

from jaxrec.inference.loading import load
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.forecast import forecast
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.stores.sqlite import SQLiteStore

EVENTS = [UserEvent("gus", event(n * DAY, f"i{3 * n:02}")) for n in range(9)]


@pytest.fixture
def engine(forecast_run, tmp_path):
    engine = LiveEngine(load(forecast_run), SQLiteStore(tmp_path / "store.db"), window=3)
    engine.record(EVENTS)
    return engine


def test_a_live_forecast_is_that_of_batch_scoring(engine):
    before = engine.document("gus")
    made = forecast(engine, before, 3, k=6)
    expected = engine.model.forecast(table(EVENTS), 3, k=6)
    assert made.items["item_id"].to_list() == expected["item_id"].to_list()
    for name in ("weight", "low", "median", "high"):
        np.testing.assert_allclose(made.items[name], expected[name], atol=1e-5)
    nodes = engine.model.forecast(table(EVENTS), 3, target=made.type)
    for step, (weights, high) in enumerate(zip(made.weights.mean, made.weights.high, strict=True)):
        own = nodes.filter(pl.col("step") == step + 1)
        listed = dict(zip(own[made.type], own.select("weight", "high").rows(), strict=True))
        for name, *figures in zip(made.names, weights, high, strict=True):
            np.testing.assert_allclose(figures, listed[name], atol=1e-5)
    assert engine.document("gus").version == before.version  # nothing is stored


def test_a_forecast_goes_on_from_the_history_of_interest(engine):
    document = engine.document("gus")
    node_type, names, weights = engine.interest_history(document)
    made = forecast(engine, document)
    assert (made.type, made.names) == (node_type, names)
    assert made.weights.mean.shape == (4, len(names))  # all that the decoder was trained for
    np.testing.assert_allclose(made.weights.mean[0], weights[-1], atol=1e-5)
    new = forecast(engine, engine.document("nobody"))
    assert new.names == [] and new.items["step"].max() == 4


@pytest.mark.thorough
def test_no_forecast_of_a_warm_engine_waits_for_a_compilation(engine):
    jax.clear_caches()  # compilations of other tests would hide those of this one
    engine.warm_up(BATCHES[:1])
    traced = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **about: traced.append(name) if "trace" in name else None
    )
    engine.interest_history(engine.document("gus"))  # of as many events as there are
    known = len(traced)
    for user in ("gus", "nobody"):
        for steps in (1, 2, 4):
            forecast(engine, engine.document(user), steps, k=3)
    assert len(traced) == known
