"""User states as files."""

import json

import numpy as np
import polars as pl
from helpers.jobs import BLOCK, read
from helpers.live import START, event, table

import jaxrec
from jaxrec.inference.encoding import state_tree
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.states import state_table
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_written_states_equal_those_of_the_model(serve, trained_run, known_shop, tmp_path):
    serve("--out", tmp_path / "out", "--states", tmp_path / "states", *BLOCK)
    table = read(tmp_path / "states").sort("user_id")
    model = jaxrec.load(trained_run)
    log = model.encoder.event_log(known_shop.events)
    metadata = pl.read_parquet_metadata(tmp_path / "states" / "part-00000.parquet")
    layout = json.loads(metadata["layout"])
    assert table["user_id"].to_list() == log.user_ids.to_list()
    np.testing.assert_array_equal(table["events"], log.lengths)
    np.testing.assert_array_equal(table["last_time"], log.times[log.offsets[1:] - 1])
    sizes = [int(np.prod(part["shape"])) for part in layout["parts"]]
    parts = np.split(table["state"].to_numpy(), np.cumsum(sizes)[:-1], axis=1)
    outputs = [
        part
        for part, described in zip(parts, layout["parts"], strict=True)
        if described["name"].endswith("output")
    ]
    states = model.encoder.states(log)
    np.testing.assert_allclose(table["state"].to_numpy(), states, atol=1e-5)
    expected = [state.output for state in state_tree(model.model.merge(), states)]
    np.testing.assert_allclose(np.stack(outputs), np.stack(expected), atol=1e-5)
    assert (tmp_path / "states" / "_SUCCESS").exists()


def test_users_with_feedback_only_have_the_initial_state(model):
    events = table([UserEvent("a", event(0)), UserEvent("b", event(9, event_type="hide"))])
    log = model.encoder.known_events(model.encoder.event_log(events, ["hide"]))
    states = state_table(log, model.encoder.states(log))
    assert states.select("user_id", "events", "last_time").rows() == [("a", 1, START), ("b", 0, -1)]
    engine = LiveEngine(model, SQLiteStore(":memory:"))
    engine.record([UserEvent("b", event(5))])
    assert engine.recorder.load_states(states) == 0
    without_events = model.encoder.known_events(model.encoder.event_log(events[1:], ["hide"]))
    assert len(state_table(without_events, model.encoder.states(without_events))) == 1
